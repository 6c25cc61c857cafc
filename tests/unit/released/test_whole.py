"""Models in whole at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import isthmus as im
from isthmus.model.backbones.tiny_llava import write_tiny_llava
from isthmus.model.backbones.tiny_whole import write_tiny_whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_whole(tmp_path_factory.mktemp("git"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def test_ask(run: Any, folder: Path, image: Path) -> None:
    expected = im.ask(im.load(folder), image, "What?", max_new_tokens=4).text
    for more in ((), ("--stream",)):
        code, out, _ = run(
            "ask", image, "What?", "--model", f"hf:{folder}", "--max-new-tokens", 4, *more
        )
        assert (code, out) == (0, f"{expected}\n")


def test_eval(run: Any, folder: Path) -> None:
    code, out, _ = run(
        "eval", folder, "--tasks", "counting", "--shots", "0", "--limit", 2, "--json", "--quiet"
    )
    assert code == 0
    assert json.loads(out)


def test_classify(run: Any, folder: Path, image: Path, tmp_path: Path) -> None:
    code, out, _ = run("classify", image, "--labels", "cat,dog", "--model", folder, "--json")
    assert code == 0
    told = json.loads(out)
    assert sum(each["probability"] for each in told["top"]) == pytest.approx(1, abs=1e-5)
    [found] = im.classify_images([image], ["cat", "dog"], model=f"hf:{folder}")
    assert told["label"] == found.labels[0]
    # a model that was taken apart answers too
    llava = write_tiny_llava(tmp_path / "llava")
    code, out, _ = run("classify", image, "--labels", "cat,dog", "--model", llava, "--json")
    assert code == 0
    assert json.loads(out)["label"] in ("cat", "dog")


def test_info_says_what_it_cannot_do(run: Any, folder: Path) -> None:
    code, out, _ = run("info", folder)
    assert code == 0
    assert "GitForCausalLM in whole" in out
    assert "continuous batching (serve, chat)" in out
    code, out, _ = run("info", folder, "--json")
    assert "export" in json.loads(out)["cannot"]


@pytest.mark.parametrize("verb", ["serve", "chat", "export", "train", "rationales"])
def test_what_needs_parts_is_one_line(
    run: Any, folder: Path, tmp_path: Path, verb: str, image: Path
) -> None:
    records = tmp_path / "data.jsonl"
    records.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "run.toml").write_text(
        f'[vision]\nname = "tiny-vit"\n[language]\nname = "hf:{folder}"\n'
        f'[connector]\ntype = "linear"\n[[data]]\npath = "{records}"\n'
    )
    arguments: dict[str, tuple[object, ...]] = {
        "serve": ("serve", folder, "--port", 0),
        "chat": ("chat", folder, "--terminal"),
        "export": ("export", folder, "--out", tmp_path / "out"),
        "train": ("train", tmp_path / "run.toml", "--out", tmp_path / "out"),
        "rationales": (
            "rationales",
            "--data",
            records,
            "--out",
            tmp_path / "r.toml",
            "--model",
            folder,
        ),
    }
    code, _, err = run(*arguments[verb])
    assert code == 2, err
    [line] = [each for each in err.splitlines() if each.startswith("error: ")]
    assert "Traceback" not in err
    assert "GitForCausalLM" in line
