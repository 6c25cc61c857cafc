"""A fingerprint that is kept says what hashing would say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from isthmus.model.backbones import fingerprint as module
from isthmus.model.backbones.fingerprint import WeightFiles, fingerprint

WEIGHTS = "model.safetensors"


def read(folder: Path) -> nn.Module:
    model = nn.Linear(4, 3)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model


def settle() -> None:
    """Waits until files that were written count as settled."""
    time.sleep(2 * module.SETTLED)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SETTLED", 0.05)
    made = tmp_path / "weights"
    made.mkdir()
    save_file(nn.Linear(4, 3).state_dict(), made / WEIGHTS)
    settle()
    return made


def loaded(folder: Path) -> str:
    """The fingerprint as a load finds it."""
    files = WeightFiles(folder, folder.parent / "kept.json")
    return files.fingerprint(read(folder))


def test_what_is_kept_is_used_while_the_files_stay(folder: Path) -> None:
    assert loaded(folder) == fingerprint(read(folder))
    kept = folder.parent / "kept.json"
    told = json.loads(kept.read_text("utf-8"))
    kept.write_text(json.dumps({**told, "fingerprint": "0123"}), "utf-8")
    assert loaded(folder) == "0123"


def test_a_weight_that_changed_on_disk_changes_it_though_size_and_time_stay(folder: Path) -> None:
    first, before = loaded(folder), (folder / WEIGHTS).stat()
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-2] ^= 0x40
    with (folder / WEIGHTS).open("rb+") as file:  # the same file, not another in its place
        file.write(data)
    os.utime(folder / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / WEIGHTS).stat()
    assert (after.st_size, after.st_ino) == (before.st_size, before.st_ino)
    assert after.st_mtime_ns == before.st_mtime_ns
    settle()
    assert loaded(folder) == fingerprint(read(folder)) != first


def test_files_that_change_while_they_are_read_are_hashed_and_not_kept(folder: Path) -> None:
    files = WeightFiles(folder, folder.parent / "kept.json")
    model = read(folder)
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, folder / WEIGHTS)
    settle()
    assert files.fingerprint(model) == fingerprint(model)
    assert not (folder.parent / "kept.json").exists()
    assert loaded(folder) == fingerprint(read(folder)) != fingerprint(model)


def test_files_written_just_now_are_hashed_and_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", 3600.0)
    assert loaded(folder) == fingerprint(read(folder))
    assert not (folder.parent / "kept.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"state": 1}', "\x00"])
def test_a_damaged_cache_is_written_anew(folder: Path, text: str) -> None:
    kept = folder.parent / "kept.json"
    kept.write_text(text, "utf-8")
    assert loaded(folder) == fingerprint(read(folder))
    assert json.loads(kept.read_text("utf-8"))["fingerprint"] == loaded(folder)


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path) -> None:
    place = folder.parent / "file"
    place.write_text("a file where a folder should be")
    files = WeightFiles(folder, place / "kept.json")
    assert files.fingerprint(read(folder)) == fingerprint(read(folder))


def test_models_without_known_files_are_hashed() -> None:
    layer = nn.Linear(2, 2)
    files = WeightFiles(None, Path("/nowhere/kept.json"))
    assert files.fingerprint(layer) == fingerprint(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert files.fingerprint(layer) == fingerprint(layer)
