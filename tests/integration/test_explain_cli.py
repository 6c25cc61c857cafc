"""`isthmus explain`: a page, JSON, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    return im.save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def test_it_writes_a_page_and_says_what_is_in_it(
    run: Any, model: Path, image: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "page.html"
    command = ("explain", image, QUESTION, "--model", model, "--out", page, "--max-new-tokens", 3)
    code, out, err = run(*command)
    assert code == 0
    assert err == ""
    answer = im.ask(im.load(model), image, QUESTION, max_new_tokens=3).written
    first, second, last = out.splitlines()
    assert first == f"answer: {answer}"
    assert second.startswith("without the images: ")
    assert last == f"page: {page}"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_is_the_explanation(run: Any, model: Path, image: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ("--json", "--heads", "--side", 2, "--max-new-tokens", 2, "--words", 1)
    code, out, _ = run("explain", image, QUESTION, "--model", model, "--out", page, *options)
    assert code == 0
    told = json.loads(out)
    expected = im.explain(
        im.load(model), image, QUESTION, heads=True, side=2, max_new_tokens=2, words=1
    ).to_dict()
    assert told.pop("page") == str(page)
    assert told.pop("model") == str(model)
    assert told["tokens"][0]["id"] == expected["tokens"][0]["id"]
    assert told.keys() == expected.keys()
    own = told["images"][0]
    assert torch.tensor(own["heads"]["text"]).shape == (len(told["tokens"]), 4, 4, 16)
    assert torch.tensor(own["covered"]["change"]).shape == (4, len(told["tokens"]))
    assert own["words"]["layers"] == ["input", "after 4 layers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("IMAGE",), "expected at least one image and then the question"),
        (("nothing.png", QUESTION), "no file at nothing.png"),
        (("IMAGE", QUESTION, "--side", 99), "side is 99: expected 0 to 16"),
        (("IMAGE", QUESTION, "--words", -1), "words is -1: expected 0 or more"),
        (("IMAGE", QUESTION, "--out", "FOLDER"), "is a folder: expected the name of a page"),
        (("IMAGE", "<image>", "--out", "page.html"), "<image>"),
        (("https://example.com/a.png", QUESTION), "pass --allow-url"),
        (("IMAGE", QUESTION, "--device", "toaster"), "toaster"),
    ],
)
def test_bad_input_is_one_line(
    run: Any,
    model: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"IMAGE": image, "FOLDER": tmp_path}
    code, out, err = run("explain", *(named.get(str(a), a) for a in arguments), "--model", model)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.glob("*.html"))
