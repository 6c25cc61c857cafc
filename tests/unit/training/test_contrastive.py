"""Contrastive training: exact to resume, the same from kept vectors, and it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.joined import HeadConfig
from isthmus.data.records import Record
from isthmus.training.contrastive import train_contrastive
from isthmus.training.contrastive_config import ContrastiveConfig
from isthmus.training.contrastive_data import PairSet

NAMES = ["red", "green", "blue", "white", "black", "gray", "pink", "teal"]
CONFIG = ContrastiveConfig(steps=6, batch_size=4, warmup=2, save_every=2, log_every=1, lr=1e-3)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for i, name in enumerate(NAMES):
        noise = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = tmp_path / f"{name}.png"
        Image.fromarray(noise).resize((48, 40), Image.Resampling.NEAREST).save(path)
        made.append(Record.of(path, "", name, names=(name, f"dark {name}")))
    return made


def join(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    heads = {"image_head": HeadConfig(hidden=32), "text_head": HeadConfig(), "width": 16}
    return DualEncoder.join("tiny-vit", "tiny-text", **{**heads, **options})


def logged(folder: Path, key: str = "loss") -> list[tuple[int, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(e["step"], e[key]) for e in map(json.loads, lines) if key in e]


def state(model: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_smoke(records: list[Record], tmp_path: Path) -> None:
    data = [PairSet(records, "imagenet-7")]
    config = replace(CONFIG, evaluate_every=3, views=2)
    train_contrastive(join(), data, config, tmp_path / "run", evaluation=data)
    print((tmp_path / "run" / "log.jsonl").read_text())
    print(sorted(p.relative_to(tmp_path) for p in (tmp_path / "run").rglob("*")))
