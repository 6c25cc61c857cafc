from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import isthmus as im
from isthmus.errors import CheckpointError
from isthmus.model import checkpoint
from isthmus.model.backbones.tiny import (
    byte_tokenizer,
    tiny_cnn_model,
    tiny_language_model,
    tiny_vit_model,
)
from isthmus.model.connectors.linear import LinearConnector
from isthmus.model.connectors.names import Names


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))
    return im.save(model, tmp_path / "model")


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / checkpoint.DESCRIPTION
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / checkpoint.WEIGHTS)
    change(state)
    save_file(state, folder / checkpoint.WEIGHTS)


def test_only_the_strip_is_in_the_file(saved: Path) -> None:
    names = load_file(saved / checkpoint.WEIGHTS).keys()
    assert {n.split(".")[0] for n in names} == {"connector", "fusion", "special_tokens"}
    assert sorted(p.name for p in saved.iterdir()) == [checkpoint.DESCRIPTION, checkpoint.WEIGHTS]


def test_half_precision_files_load_in_full(saved: Path) -> None:
    model = im.load(saved)
    im.save(model, saved, dtype=torch.float16)
    assert load_file(saved / checkpoint.WEIGHTS)["connector.projection.weight"].dtype == torch.half
    weight = im.load(saved).connector.projection.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, model.connector.projection.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("connector.projection.bias"), r"connector\.projection\.bias is missing"),
        (lambda s: s.update(more=torch.zeros(1)), "more is unexpected"),
        (
            lambda s: s.update({"connector.projection.bias": torch.zeros(3)}),
            r"connector\.projection\.bias is \(3,\), expected \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit(saved: Path, change: Any, message: str) -> None:
    edit_weights(saved, change)
    with pytest.raises(CheckpointError, match=message):
        im.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=2), "format_version 2, this Isthmus reads 1"),
        (lambda v: v.pop("format_version"), "is damaged"),
        (lambda v: v["parts"].update(vision="0" * 16), 'vision model "tiny-vit"'),
    ],
)
def test_descriptions_that_do_not_fit(saved: Path, change: Any, message: str) -> None:
    edit_json(saved, change)
    with pytest.raises(CheckpointError, match=message):
        im.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("config"),
        lambda v: v.update(config=[1]),
        lambda v: v["config"].pop("connector"),
        lambda v: v["config"].update(connector="linear"),
        lambda v: v.pop("parts"),
        lambda v: v["parts"].pop("vision"),
        lambda v: v.update(parts=[1]),
    ],
)
def test_descriptions_with_holes_are_damaged(saved: Path, change: Any) -> None:
    edit_json(saved, change)
    with pytest.raises(CheckpointError, match=r"isthmus\.json is damaged"):
        im.load(saved)


def test_damaged_files(saved: Path) -> None:
    (saved / checkpoint.WEIGHTS).write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="cannot be read"):
        im.load(saved)
    (saved / checkpoint.DESCRIPTION).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        im.load(saved)


def test_another_language_model_of_the_same_shape(saved: Path) -> None:
    other = tiny_language_model(seed=1)
    with pytest.raises(CheckpointError, match=r"language model .* other weights"):
        im.load(saved, language=other, tokenizer=byte_tokenizer())


def test_a_connector_of_ones_own_must_be_brought_along(tmp_path: Path) -> None:
    own = LinearConnector(32, 64, 16)
    model = im.compose("tiny-vit", "tiny-lm", own)
    folder = im.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="connector of its owner's"):
        im.load(folder)
    again = im.load(folder, connector=LinearConnector(32, 64, 16))
    assert torch.equal(again.connector.projection.weight, own.projection.weight)


def test_objects_are_used_as_they_were_when_the_model_was_saved(tmp_path: Path) -> None:
    vision = im.load_vision(tiny_vit_model(), feature_layer=-2, keep_cls=True)
    language = im.load_language(tiny_language_model(), tokenizer=byte_tokenizer(), lora_rank=2)
    model = im.compose(vision, language, im.Linear())
    folder = im.save(model, tmp_path)
    objects: dict[str, Any] = {"language": tiny_language_model(), "tokenizer": byte_tokenizer()}
    again = im.load(folder, vision=tiny_vit_model(), **objects)
    batch = model.prepare(["<image>a"], [[torch.randn(3, 32, 32)]])
    assert torch.equal(again(batch).logits, model(batch).logits)


def test_an_encoder_that_gives_other_features_is_refused(tmp_path: Path) -> None:
    vision = im.load_vision(tiny_vit_model(), feature_layer=-2)
    folder = im.save(im.compose(vision, "tiny-lm", im.Linear()), tmp_path)
    with pytest.raises(CheckpointError, match=r"feature_layer is -1.* trained with -2"):
        im.load(folder, vision=im.load_vision(tiny_vit_model()))


def test_an_encoder_that_is_passed_gives_the_regions_that_were_trained_on(tmp_path: Path) -> None:
    vision = im.VisionConfig(name="tiny-cnn", resize="squash", regions=True)
    model = im.compose(vision, "tiny-lm", Names().toy())
    folder = im.save(model, tmp_path)
    again = im.load(folder, vision=tiny_cnn_model())
    assert again.vision.shape == model.vision.shape
    with pytest.raises(CheckpointError, match=r"regions is False.* load_vision\(.*regions=True\)"):
        im.load(folder, vision=im.load_vision(tiny_cnn_model()))
    with pytest.raises(CheckpointError, match=r"regions = true needs .* got object:Vision"):
        im.load(folder, vision=tiny_vit_model())


def test_objects_must_be_brought_along(tmp_path: Path) -> None:
    seen = im.compose(tiny_vit_model(), "tiny-lm", im.Linear())
    with pytest.raises(CheckpointError, match=r"pass it as load\(\.\.\., vision="):
        im.load(im.save(seen, tmp_path / "vision"))
    told = im.compose("tiny-vit", tiny_language_model(), im.Linear(), tokenizer=byte_tokenizer())
    with pytest.raises(CheckpointError, match=r"pass it as load\(\.\.\., language="):
        im.load(im.save(told, tmp_path / "language"))
