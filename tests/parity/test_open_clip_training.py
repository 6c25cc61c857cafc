"""A CLIP trained whole is the one that a plain loop with open_clip's model and loss gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from isthmus.config.clip import ContrastiveConfig
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.model.clip.checkpoint import load_clip
from isthmus.training.loop import train
from isthmus.training.pairs import PairFeed, PairSet

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "size": 32}
NAMES = ["red", "green", "blue", "white", "black", "gray", "pink", "teal"]
TRAIN = TrainConfig(
    steps=5,
    batch_size=4,
    warmup=2,
    lr=3e-3,
    weight_decay=0.2,
    final_lr=0.1,
    precision="fp32",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved open_clip model, and eight images."""
    torch.manual_seed(0)
    told = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    state = open_clip.CLIP(**CONFIG).state_dict()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    for i, name in enumerate(NAMES):
        noise = np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    return tmp_path


def plain_loop(folder: Path, data: list[PairSet]) -> Any:
    """Open images, tokenize, loss, clip, AdamW, clamp: nothing of ours but which pairs."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer, loss = open_clip.get_tokenizer(f"local-dir:{folder}"), open_clip.loss.ClipLoss()
    named = dict(model.named_parameters())
    without = [n for n, p in named.items() if p.ndim < 2 or "embedding" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n not in without], "weight_decay": 0.2},
            {"params": [named[n] for n in without], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    feed = PairFeed(data, TRAIN, transform)
    for step in range(TRAIN.steps):
        pairs = list(feed.drawn(step))
        pixels = torch.stack([transform(Image.open(p.image.path)) for p in pairs])
        image, text, scale = model(pixels, tokenizer([p.text for p in pairs]))
        optimizer.zero_grad()
        loss(image, text, scale).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = max(0, step - 2) / (TRAIN.steps - 1 - 2)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * ((step + 1) / 2 if step < 2 else cosine)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    return model


@pytest.mark.parametrize("chunk", [None, 3])
def test_training_is_the_plain_loop(folder: Path, chunk: int | None) -> None:
    records = [Record.of(folder / f"{name}.png", "", name) for name in NAMES]
    data = [PairSet(records, ["a photo of a {}.", "{}"])]
    theirs = plain_loop(folder, data).eval()
    ours = load_clip(f"open_clip:local-dir:{folder}")
    config = replace(TRAIN, contrastive=ContrastiveConfig(chunk=chunk))
    before = ours.logit_scale.item()
    train(ours, data, config, folder / "run", quiet=True)
    assert ours.logit_scale.item() != before
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item(), abs=1e-5)
    again = load_clip(folder / "run")
    texts = [f"a photo of a {name}." for name in NAMES]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.encode_text(tokens, normalize=True)
        image = theirs.encode_image(pixels, normalize=True)
        for model in (ours, again):
            torch.testing.assert_close(model.encode_texts(texts), expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(model.encode_pixels(pixels), image, atol=1e-4, rtol=0)
