"""`isthmus classify`: what it prints is what Python gives; bad input is one line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import isthmus as im
from isthmus.cli import main
from isthmus.reports.sheet import CELL, contact_sheet

LABELS = ["cat", "great white shark", "ice cream"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.DualEncoder.join("tiny-vit", "tiny-text", width=12)
    return im.save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (30, 20 + 30 * i, 3), np.uint8)).save(
            folder / f"{i}.png"
        )
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["isthmus", "classify", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_json_and_table_are_python_s_answers(run: Any, model: Path, images: Path) -> None:
    files = [str(images / f"{i}.png") for i in range(3)]
    made = im.ZeroShotClassifier(model, LABELS, "one", cache=False)
    arguments = (images, "--labels", ", ".join(LABELS), "--templates", "one", "--model", model)
    code, out, err = run(*arguments, "--top", 2, "--json")
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [f["image"] for f in found] == files
    assert [f["label"] for f in found] == made.predict(files).tolist()
    for f, expected in zip(found, made.top(files, 2), strict=True):
        assert [t["label"] for t in f["top"]] == [name for name, _ in expected]
        assert [t["probability"] for t in f["top"]] == pytest.approx(
            [score for _, score in expected], abs=1e-5
        )
    code, out, _ = run(*arguments)
    assert code == 0
    for file, label in zip(files, made.predict(files), strict=True):
        assert Path(file).name in out.replace("\n", "")
        assert label in out


def test_labels_of_a_file_stdin_threshold_and_several(
    run: Any, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "labels.txt").write_text("cat\n\n ice cream \n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((images / "1.png").read_bytes())))
    told = ("--labels-file", images / "labels.txt", "--model", model, "--json")
    code, out, _ = run("-", *told, "--threshold", 1)
    assert code == 0
    assert json.loads(out)["label"] == "none of these"
    assert {t["label"] for t in json.loads(out)["top"]} == {"cat", "ice cream"}
    code, out, _ = run(images / "1.png", *told, "--multi-label", "--threshold", 0)
    assert json.loads(out)["labels"] == ["cat", "ice cream"]


def test_the_sheet_shows_every_image_and_its_label(run: Any, model: Path, images: Path) -> None:
    out = images / "made" / "sheet.png"
    arguments = (images, "--labels", "cat,dog", "--model", model, "--json", "--sheet", out)
    code, printed, _ = run(*arguments)
    assert code == 0
    label = json.loads(printed.splitlines()[0])["label"]
    shown = Image.open(out)
    first = Image.open(images / "0.png").convert("RGB")
    scaled = first.resize((first.width * CELL // first.height, CELL), Image.Resampling.LANCZOS)
    left = 14 + (CELL - scaled.width) // 2
    region = shown.crop((left, 14, left + scaled.width, 14 + CELL))
    assert ImageChops.difference(region, scaled).getbbox() is None
    named = contact_sheet([first], [[label]])
    caption = (14, 14 + CELL, 14 + 60, 14 + CELL + 18)
    assert ImageChops.difference(shown.crop(caption), named.crop(caption)).getbbox() is None
    assert named.crop(caption).getextrema()[0][0] < 100


def test_a_long_line_is_shortened_to_its_place() -> None:
    plain = contact_sheet([Image.new("RGB", (4, 4))], [["w" * 300]])
    assert plain.crop((14 + CELL + 1, 0, plain.width, plain.height)).getextrema()[0] == (255, 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no labels"),
        (("--labels", "cat, cat"), '"cat" more than once'),
        (("--labels", "cat", "--labels-file", "x.txt"), "leave one of them out"),
        (("--labels-file", "nowhere.txt"), "cannot read the labels in nowhere.txt"),
        (("--labels", "cat", "--templates", "a photo"), "has no {}"),
        (("--labels", "cat", "--templates", "imagenet80"), 'did you mean "imagenet-80"'),
        (("--labels", "x" * 200), "at most 128"),
        (("--labels", "cat", "--sheet", "out.jpg"), "ends in .png"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, model: Path, images: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(images / "0.png", *arguments, "--model", model)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_bad_images_and_models_are_one_line(run: Any, model: Path, images: Path) -> None:
    told = ("--labels", "cat", "--model", model)
    (images / "empty").mkdir()
    (images / "3.png").write_bytes((images / "2.png").read_bytes()[:200])
    for arguments, message in (
        (("nowhere.png", *told), "no file at nowhere.png"),
        ((images / "empty", *told), "no images in"),
        (
            (images / "0.png", "--labels", "cat", "--model", "tiny-clp"),
            'did you mean "tiny-clip"',
        ),
        ((images / "3.png", *told), "3.png is truncated"),
        (("-", images, *told), "goes alone"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert message in err


def test_a_calibration_file_gives_python_s_probabilities(
    run: Any, model: Path, images: Path, tmp_path: Path
) -> None:
    files = [str(images / f"{i}.png") for i in range(3)]
    told = ("--labels", ",".join(LABELS), "--templates", "one", "--model", model, "--json")
    made = im.ZeroShotClassifier(model, LABELS, "one", cache=False)
    noise = torch.randn(90, 12, generator=torch.Generator().manual_seed(0))
    features = made.weights_.repeat(30, 1) + noise / 2
    fitted = made.calibrate(features, LABELS * 30, method="vector", precision=0.5)
    assert fitted.calibration is not None
    file = fitted.calibration.save(tmp_path / "calibration.json")

    code, out, err = run(images, *told, "--calibration", file)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [f["label"] for f in found] == fitted.predict(files).tolist()
    for f, expected in zip(found, fitted.top(files), strict=True):
        assert [t["label"] for t in f["top"]] == [name for name, _ in expected]
        assert [t["probability"] for t in f["top"]] == pytest.approx(
            [score for _, score in expected], abs=1e-5
        )
        assert expected != made.top(files[:1])[0]
    code, out, _ = run(files[0], *told, "--calibration", file, "--threshold", 1)
    assert json.loads(out)["label"] == "none of these"

    torch.manual_seed(1)
    other = im.save(im.DualEncoder.join("tiny-vit", "tiny-text", width=12), tmp_path / "other")
    (tmp_path / "damaged.json").write_text("{}")
    for arguments, message in (
        (("--calibration", file, "--model", other), "the calibration is for the model"),
        (("--calibration", file, "--templates", "none"), "for the templates"),
        (("--calibration", file, "--labels", "cat,dog"), 'no numbers for the label "dog"'),
        (("--calibration", file, "--labels", "cat,ice cream"), '"great white shark" is missing'),
        (("--calibration", file, "--multi-label"), "leave one of them out"),
        (("--calibration", tmp_path / "nowhere.json"), "cannot read the calibration in"),
        (("--calibration", tmp_path / "damaged.json"), "is no calibration"),
    ):
        code, out, err = run(files[0], *told, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert message in err
