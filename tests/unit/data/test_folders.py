from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.data.folders import images_of
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.evaluation.tasks.images import classification
from isthmus.media.file_ref import FileRef
from isthmus.search.index import paths_in


def write(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/red_fox/1.jpg", "train/owl/deep.PNG", "train/owl/.x.jpg", ".git/a.jpg")
    records = read_data(tmp_path)
    assert [(r.answer, r.question, str(r.images[0])) for r in records] == [
        ("owl", "", str(tmp_path / "train/owl/deep.PNG")),
        ("red fox", "", str(tmp_path / "train/red_fox/1.jpg")),
    ]


def test_texts_beside_images_the_first_ending_wins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "without.jpg")
    write(tmp_path / "in/a.txt", "from txt\n")
    write(tmp_path / "in/a.json", {"caption": "from json"})
    write(tmp_path / "in/b.json", {"question": "Who?", "answer": "b"})
    write(tmp_path / "in/b.caption", "from caption")
    write(tmp_path / "in/c.caption", "from caption")
    a, b, c = read_data(tmp_path)
    assert (a.answer, b.question, b.answer, c.answer) == ("from txt", "Who?", "b", "from caption")
    assert b.images == (FileRef(tmp_path / "in/b.jpg"),)
    assert "1 images have no text" in caplog.text
    assert "without.jpg" in caplog.text


@pytest.mark.parametrize("folder", ["", "images/"])
def test_a_flat_folder_says_what_was_expected(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}a.jpg")
    write(tmp_path / "pairs.jsonl", "")
    with pytest.raises(ConfigError, match=r"nothing says .*a\.jpg: expected .*pairs\.jsonl tells"):
        read_data(tmp_path)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images in"):
        read_data(tmp_path)


def test_imagefolder_metadata_is_relative_to_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    touch(tmp_path, "data/train/in/a.jpg", "data/train/b.jpg", "data/train/unlisted.jpg")
    rows = [{"file_name": "in/a.jpg", "text": "A"}, {"file_name": "./b.jpg", "text": "B"}]
    write(tmp_path / "data/train/metadata.jsonl", *rows)
    (tmp_path / "data/test").mkdir()
    touch(tmp_path, "data/test/c.jpg")
    (tmp_path / "data/test/captions.csv").write_text("image,caption\nc.jpg,C\n")
    records = read_data("data", root=tmp_path)
    assert [(r.answer, r.images[0].read()) for r in records] == [
        ("C", b""),
        ("A", b""),
        ("B", b""),
    ]
    assert "1 images have no text" in caplog.text
    assert "unlisted.jpg" in caplog.text


def test_a_link_back_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "owl/1.jpg")
    (tmp_path / "owl/loop").symlink_to(tmp_path)
    assert len(read_data(tmp_path)) == 1


def test_a_folder_of_lists_and_a_glob(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", {"text": f"{name}0"}, {"text": f"{name}1"})
    for records in (read_data(tmp_path), read_data("{a,b}.jsonl", root=tmp_path)):
        assert [r.text for r in records] == ["a0", "a1", "b0", "b1"]
        assert (records[-1].text, records[2].text, len(records[1:3])) == ("b1", "b0", 2)
        with pytest.raises(IndexError):
            records[4]


def test_a_flat_folder_without_any_text(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"nothing says what is in .*a\.png: expected a\.txt"):
        read_data(tmp_path)


def test_endings_in_capitals(tmp_path: Path) -> None:
    touch(tmp_path, "cat.JPG", "owl.Png")
    (tmp_path / "cat.TXT").write_text("a cat")
    (tmp_path / "owl.JSON").write_text('{"caption": "an owl"}')
    assert [r.answer for r in read_data(tmp_path)] == ["a cat", "an owl"]
    touch(tmp_path / "listed", "a.jpg")
    (tmp_path / "listed/Metadata.CSV").write_text("file_name,text\na.jpg,listed\n")
    assert [r.answer for r in read_data(tmp_path / "listed")] == ["listed"]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/R.JSONL").write_text('{"text": "words"}')
    assert [r.text for r in read_data(tmp_path / "lines")] == ["words"]


LEFT_OUT = ("@eaDir/a.jpg", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".hidden")


def test_what_systems_put_beside_files_is_left_out_by_every_walk(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "owl/b.jpg", "cat/._a.jpg")
    for number, name in enumerate(LEFT_OUT):
        touch(tmp_path, f"{name}/{number}.jpg", f"cat/{name}/{number}.jpg")
    both = [str(tmp_path / "cat/a.jpg"), str(tmp_path / "owl/b.jpg")]
    assert [r.answer for r in read_data(tmp_path)] == ["cat", "owl"]
    assert [str(p) for p in images_of([tmp_path])] == both
    assert list(paths_in(tmp_path, tmp_path / "index")) == both
    assert list(paths_in(tmp_path, tmp_path / "owl")) == both[:1]
    task = classification(tmp_path)
    assert sorted(str(item.example.images[0]) for item in [*task.items, *task.support]) == both
