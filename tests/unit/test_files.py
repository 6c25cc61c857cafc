"""Files that are written in whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from isthmus import IsthmusError, OutputError
from isthmus.files import write_atomically, write_json, write_text


def test_a_file_is_written_where_no_folder_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def half(temporary: Path) -> None:
        temporary.write_text("aft")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: .*No space left") as caught:
        write_atomically(path, half)
    assert isinstance(caught.value, IsthmusError)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "before"


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_json_holds_what_a_file_name_may_hold(tmp_path: Path) -> None:
    values = {"name": "caf\udce9 고양이"}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "고양이" in text
    assert json.loads(text) == values
