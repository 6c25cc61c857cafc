"""Released models that cut images into tiles: on the command line, in files, in caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.config.file import read_run
from isthmus.errors import ConfigError
from isthmus.generation.encode import PromptEncoder
from isthmus.model.backbones.tiny_tiles import write_tiny_tiles
from isthmus.training.run import build

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tiles(tmp_path_factory.mktemp("whole"), "llava_next")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_the_command_line_takes_the_most_tiles(run: Any, whole: Path, image: Path) -> None:
    texts = {}
    for most in (1, None):
        options = {} if most is None else {"max_tiles": most}
        model = im.load(whole, image_options=options)
        texts[most] = im.ask(model, image, QUESTION, max_new_tokens=4).text
        more = () if most is None else ("--max-tiles", most)
        arguments = ("ask", image, QUESTION, "--model", whole, "--max-new-tokens", 4, *more)
        assert run(*arguments) == (0, f"{texts[most]}\n", "")
    assert len({*texts.values()}) == 2


@pytest.mark.parametrize("command", ["ask", "serve"])
def test_a_model_that_cuts_none_refuses_the_option(run: Any, image: Path, command: str) -> None:
    arguments = ("ask", image, QUESTION) if command == "ask" else ("serve", "--port", 0)
    code, out, err = run(*arguments, "--max-tiles", 2)
    assert (code, out) == (2, "")
    assert err == (
        'error: image option "max_tiles": this model opens all images alike and has no options\n'
    )


def test_info_tells_of_the_most_and_the_usual(run: Any, whole: Path) -> None:
    code, out, _ = run("info", whole)
    assert code == 0
    summary = im.load(whole).summary()
    most, usual = summary.visual_tokens, summary.usual_tokens
    assert f"an image becomes {most} visual tokens at most, {usual} mostly" in out


def test_a_run_names_the_medium_in_its_file(whole: Path, tmp_path: Path) -> None:
    model = im.load(whole)
    im.save(model, tmp_path / "strip")
    (tmp_path / "run.toml").write_text(
        f"""
template = "plain"
[vision]
name = "hf:{whole}"
feature_layer = -2
[language]
name = "hf:{whole}"
[connector]
type = "mlp"
[[media]]
type = "any_resolution"
[tokens]
image_id = {model.special_tokens.image_id}
[train]
init = "{tmp_path / "strip"}"
"""
    )
    built = build(read_run(tmp_path / "run.toml"), "cpu").eval()
    assert isinstance(built, im.VisionLanguageModel)
    assert built.config.media == model.config.media
    shown = Image.linear_gradient("L").resize((90, 60))
    batch = model.prepare(["<image>a"], [[shown]])
    with torch.no_grad():
        assert torch.equal(built(batch).logits, model(batch).logits)


def test_a_class_token_leaves_no_grid_of_tiles(whole: Path) -> None:
    from isthmus.model.media.any_resolution import AnyResolution

    encoder = im.load_vision(f"hf:{whole}", keep_cls=True)
    with pytest.raises(ConfigError, match="17 visual tokens of the grid None of patches"):
        im.compose(encoder, f"hf:{whole}", im.MLP(), media=[AnyResolution()])


def test_an_image_of_many_prompts_is_opened_once_for_its_layout(whole: Path, image: Path) -> None:
    model = im.load(whole)
    medium: Any = model.media[0]
    encoder, opened = PromptEncoder(model), []
    open_ = medium.open
    medium.open = lambda parts, source: opened.append(1) or open_(parts, source)
    data = image.read_bytes()
    for number in range(5):
        encoded, _ = encoder(im.Prompt(f"<image>{number}", (data,)))
        assert len(encoded.layouts) == 1
    assert len(opened) == 1
