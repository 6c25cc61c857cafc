from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.data.records import Record, with_questions
from isthmus.errors import ImageError
from isthmus.media.file_ref import FileRef


def test_a_image_is_a_stretch_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(b"0123456789")
    assert FileRef(path, start=3, size=4).read() == b"3456"
    assert FileRef(path, start=3).read() == b"3456789"
    assert FileRef(path, data=b"memory").read() == b"memory"


def test_a_missing_image_is_named_with_its_member(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*none\.tar:a\.jpg: No such file"):
        FileRef(tmp_path / "none.tar", member="a.jpg").read()


def test_features_are_told_by_the_member_s_ending() -> None:
    assert FileRef(Path("a.npy")).is_features
    assert FileRef(Path("s.tar"), member="a.npy").is_features
    assert not FileRef(Path("a.npy"), member="a.jpg").is_features


def test_a_record_has_as_many_tags_as_images() -> None:
    cat = FileRef(Path("cat.jpg"))
    assert Record(text="<image>A cat.", images_in_text=(cat,)).images == (cat,)
    with pytest.raises(ValueError, match="2 <image> tags and 1 images"):
        Record(text="<image><image>", images_in_text=(cat,))
    with pytest.raises(ValueError, match="turns or a text"):
        Record()


def test_a_clip_is_one_medium() -> None:
    clip = (FileRef(Path("1.jpg")), FileRef(Path("2.jpg")))
    assert Record.of(clip, "", "a walk").images == (clip,)
    assert Record.of(None, "Why?", "Because.").images == ()


def test_questions_go_to_those_without_one() -> None:
    records = [Record.of("a", "", "x"), Record.of("b", "own", "y"), Record.of("c", "", "z")]
    asked = with_questions(records, ["p", "q"])
    assert [r.question for r in asked] == ["p", "own", "p"]
    assert [r.answer for r in asked] == ["x", "y", "z"]
    assert with_questions([Record(text="words")], ["p"])[0].text == "words"
