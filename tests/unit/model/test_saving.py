"""`load` and `save` take either kind of model, and each use says which one it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.checkpoint import DESCRIPTION, describe, load_vlm, locate
from isthmus.model.clip.checkpoint import load_clip


@pytest.fixture
def vlm(tmp_path: Path) -> Path:
    return im.save(im.compose("tiny-vit", "tiny-lm", im.Linear()), tmp_path / "vlm")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return im.save(im.DualEncoder.join("tiny-vit", "tiny-text", width=8), tmp_path / "clip")


def test_what_was_saved_comes_back(vlm: Path, clip: Path) -> None:
    assert isinstance(im.load(vlm), im.VisionLanguageModel)
    assert isinstance(im.load(clip), im.DualEncoder)
    for folder, kind in ((vlm, "vlm"), (clip, "clip")):
        told = json.loads((folder / DESCRIPTION).read_text())
        assert (told["format_version"], told["kind"]) == (1, kind)
        assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, "model.safetensors"]
        half = im.save(im.load(folder), folder.parent / f"half-{kind}", dtype=torch.float16)
        smaller = (half / "model.safetensors").stat().st_size
        assert smaller < (folder / "model.safetensors").stat().st_size


def test_the_other_kind_is_refused_with_what_it_is_for(vlm: Path, clip: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a vision-language model, for ask.*tiny-clip"):
        load_clip(vlm)
    with pytest.raises(CheckpointError, match=r"holds a dual encoder, for classify.*tiny\)"):
        load_vlm(clip)
    with pytest.raises(CheckpointError, match="holds a vision-language model"):
        im.ZeroShotClassifier(vlm, ["cat"])
    with pytest.raises(CheckpointError, match="holds a dual encoder"):
        im.evaluate(clip, ["counting"], limit=1)


@pytest.mark.parametrize("change", [{"kind": "clap"}, {"kind": None}, {"parts": 3}, {"config": 3}])
def test_a_damaged_description(clip: Path, change: dict[str, object]) -> None:
    path = clip / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match="is damaged"):
        im.load(clip)


def test_a_part_of_the_other_kind_is_refused(vlm: Path, clip: Path) -> None:
    with pytest.raises(ConfigError, match='a dual encoder, which has no part "connector"'):
        im.load(clip, connector=torch.nn.Identity())
    with pytest.raises(ConfigError, match='a vision-language model, which has no part "text"'):
        im.load(vlm, text=torch.nn.Identity())


def test_both_shipped_models_say_their_kind() -> None:
    assert describe(locate("tiny"))["kind"] == "vlm"
    assert describe(locate("tiny-clip"))["kind"] == "clip"
    with pytest.raises(CheckpointError, match='did you mean "tiny"'):
        im.load("tinny")
