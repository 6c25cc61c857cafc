from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.data.records import read_records, with_questions
from isthmus.errors import ConfigError


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_each_kind_of_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"image": "a.jpg", "text": "a dog"}',
        "",
        '{"image": "b.jpg", "name": "dog", "names": ["dog", "puppy"], "source": "s"}',
        '{"features": "c.npy", "question": "How many?", "answer": "2"}',
    )
    caption, name, question = read_records(path)
    assert (caption.answer, caption.question, caption.names) == ("a dog", "", ("a dog",))
    assert (name.names, name.extra) == (("dog", "puppy"), {"source": "s"})
    assert (question.question, question.answer, question.is_features) == ("How many?", "2", True)
    assert caption.picture == tmp_path / "a.jpg"


@pytest.mark.parametrize("line", ["{", '{"image": "a.jpg"}', "3", '{"image": 1, "text": "a"}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2 is no record"):
        read_records(write(tmp_path, '{"image": "a.jpg", "text": "a"}', line))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records at"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="is empty"):
        read_records(write(tmp_path, ""))


def test_questions_go_to_those_without_one(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"image": "a", "text": "x"}',
        '{"image": "b", "question": "own", "answer": "y"}',
        '{"image": "c", "text": "z"}',
    )
    assert [r.question for r in with_questions(read_records(path), ["p", "q"])] == ["p", "own", "p"]
