"""Demonstrations in a file: what is written comes back, and a slip is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isthmus.errors import InputError
from isthmus.images import open_picture
from isthmus.prompt import Example
from isthmus.prompting.example_file import read_examples, write_examples
from isthmus.prompting.rationales import Worked

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(question=TEXT, rationale=st.none() | TEXT, answer=TEXT)
def test_whatever_the_text_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory, question: str, rationale: str | None, answer: str
) -> None:
    path = tmp_path_factory.mktemp("file") / "shots.toml"
    example = Example((), question, answer, rationale)
    write_examples(path, [example, Worked(example, {"by": answer, "seed": 3})])
    assert read_examples(path) == [example, example]


def test_the_file_is_pleasant_to_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cats.png")
    example = Example(tmp_path / "cats.png", 'How "many"?', "2", "One on the sofa.\nOne below.")
    write_examples(tmp_path / "shots.toml", [Worked(example, {"by": "auto-cot", "cluster": 3})])
    assert (tmp_path / "shots.toml").read_text() == (
        '[[example]]\npictures = ["cats.png"]\nquestion = "How \\"many\\"?"\n'
        'rationale = """\nOne on the sofa.\nOne below."""\nanswer = "2"\n'
        'made = { by = "auto-cot", cluster = 3 }\n'
    )
    [read] = read_examples(tmp_path / "shots.toml")
    assert open_picture(read.pictures[0]).size == (4, 4)
    assert (read.question, read.rationale) == (example.question, example.rationale)


def test_a_picture_in_memory_is_written_beside_the_file(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), "red")
    write_examples(tmp_path / "shots.toml", [Example(picture, "?", "red")] * 2)
    first, second = read_examples(tmp_path / "shots.toml")
    assert open_picture(first.pictures[0]).tobytes() == picture.tobytes()
    assert first == second


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[example]]\nquestion = "?"\n', r"line 1: a demonstration needs an answer"),
        ('\n[[example]]\nanswer = "1"\n\n[[example]]\nanswer = 2\n', r"line 5: answer must be"),
        ('[[example]]\nanswer = "1\n', r"not TOML.*line 2"),
        ('[[example]]\nanswer = "1"\nquestoin = "?"', r'line 1: unknown key "questoin"'),
        ('[[example]]\nanswer = "1"\npictures = "a.png"', r"line 1: pictures must be a list"),
        ('answer = "1"', r"expected \[\[example\]\] tables"),
        ("", "has nothing"),
    ],
)
def test_a_slip_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "shots.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_examples(tmp_path / "shots.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_examples(tmp_path / "none.toml")
