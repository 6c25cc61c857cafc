"""`isthmus search`: what it prints is what Python gives; bad input is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.cli import main
from isthmus.search.index import ImageIndex

pytest.importorskip("usearch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.DualEncoder.join("tiny-vit", "tiny-text", width=12)
    return im.save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["isthmus", "search", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_words_and_images(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sheet = tmp_path / "sheet.png"
    code = run(
        monkeypatch, photos, "a cat", "--model", model, "--top", 3, "--json", "--sheet", sheet
    )
    told = capsys.readouterr()
    assert code == 0
    assert told.err == "4 images new, 0 known, 0 gone\n"
    got = [json.loads(line) for line in told.out.splitlines()]
    with ImageIndex(tmp_path / "own", im.load(model)) as index:
        index.add(photos)
        hits = index.search("a cat", 3)
    assert [row["image"] for row in got] == [str(hit.path) for hit in hits]
    assert [row["score"] for row in got] == pytest.approx([h.score for h in hits], abs=1e-5)
    with Image.open(sheet) as made:
        assert made.size == (442, 520)
    (photos / "broken.png").write_bytes(b"no image")
    assert run(monkeypatch, photos, "--like", photos / "2.png", "--model", model) == 0
    told = capsys.readouterr()
    assert "skipped" in told.err
    assert "broken.png" in told.err
    assert told.out.split()[3:5] == ["1.000", "2.png"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["PHOTOS"], "say what to look for"),
        (["PHOTOS", "x", "--like", "a.png"], "say what to look for"),
        (["nowhere", "x"], "no folder at nowhere"),
        (["PHOTOS", "--like", "nowhere.png"], "no file at nowhere.png"),
        (["PHOTOS", "x", "--no-update"], "no index"),
        (["PHOTOS", "x", "--sheet", "a.jpg"], "ends in .png"),
        (["PHOTOS", "x", "--model", "nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    what: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(photos) if a == "PHOTOS" else a for a in arguments]
    assert run(monkeypatch, *given) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert what in told.err
    assert len(told.err.splitlines()) == 1


def test_an_index_of_another_model(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(5)
    other = im.DualEncoder.join("tiny-vit", "tiny-text", width=12)
    with ImageIndex(tmp_path / "index", other) as index:
        index.add(photos)
    code = run(monkeypatch, photos, "x", "--model", model, "--index", tmp_path / "index")
    assert code == 2
    assert "another image tower" in capsys.readouterr().err
