"""Encodes the training pictures once, as they are and in four changed views.

    python recipes/tiny-clip/encode.py --data DATA

reads DATA/records/train-*.jsonl and the pictures that `recipes/tiny/prepare.py` made, and writes
DATA/stages/NAME.safetensors: `features` (n, 1 + VIEWS, 2120) float16, the mean and the maximum of
every stage of the encoder, then its classifier's 1,000 scores, for each view; and
DATA/stages/NAME-piles.safetensors (n, PILES, 2120), of pictures in which the thing is piled up on
real ground (`piles.py`). A view is mirrored, made smaller, turned, shifted in hue, paler or more
vivid: what a name survives. Pictures that are no things (flags, faces, signs) are encoded as they
are alone, and their views repeat that. About half an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import piles
import torch
from PIL import Image, ImageEnhance, ImageOps
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from isthmus.align.joined import pooled_features
from isthmus.backbones.vision import VisionConfig, VisionEncoder, load_vision
from isthmus.checkpoint import write_atomically
from isthmus.images import open_picture

VISION = VisionConfig(name="asset:efficientnet-lite2", resize="pad")
SOURCES = ("train-emoji", "train-openclipart", "train-tuxpaint-drawings", "train-gcompris-words")
VIEWS, PILES = 4, 2
WHITE = (255, 255, 255)
BATCH = 16

Change = Callable[[Image.Image], Image.Image]


def changed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A picture on white in another view."""
    width, height = picture.size
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    smaller = rng.uniform(0.6, 1.0)
    wide, high = int(width / smaller), int(height / smaller)
    paper = Image.new("RGB", (wide, high), WHITE)
    paper.paste(picture, (rng.randint(0, wide - width), rng.randint(0, high - height)))
    picture = paper.rotate(rng.uniform(-20, 20), resample=Image.Resampling.BICUBIC, fillcolor=WHITE)
    kind = rng.random()
    if kind < 0.2:
        picture = picture.convert("L").convert("RGB")
    elif kind < 0.7:
        hsv = np.array(picture.convert("HSV")).astype(int)
        hsv[..., 0] = (hsv[..., 0] + rng.randint(-25, 25)) % 256
        picture = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.4, 1.6))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.7, 1.15))
    return ImageEnhance.Contrast(picture).enhance(rng.uniform(0.6, 1.3))


def records_of(root: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file."""
    lines = (root / "records" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@torch.inference_mode()
def encoded(
    encoder: VisionEncoder, pictures: list[Path], change: Change | None, label: str
) -> Tensor:
    """Pooled features (n, 2120) of pictures, each changed if there is a change."""
    found = []
    for i in track(range(0, len(pictures), BATCH), description=label):
        opened = [open_picture(path) for path in pictures[i : i + BATCH]]
        if change is not None:
            opened = [change(picture) for picture in opened]
        pixels = torch.stack([encoder.preprocess(picture) for picture in opened])
        found.append(pooled_features(encoder, pixels, "stages", classes=True))
    return torch.cat(found)


def main() -> None:
    """Writes the features of all sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root: Path = parser.parse_args().data
    (root / "stages").mkdir(exist_ok=True)
    encoder = load_vision(VISION)
    under = piles.grounds(root)
    views = [partial(changed, rng=random.Random(view)) for view in range(1, 1 + VIEWS)]
    heaps = [
        partial(piles.piled, under=under, rng=random.Random(VIEWS + pile))
        for pile in range(1, 1 + PILES)
    ]
    for name in SOURCES:
        rows = records_of(root, name)
        things = [i for i, row in enumerate(rows) if row.get("object_like", True)]
        paths = [root / row["image"] for row in rows]
        plain = encoded(encoder, paths, None, name)
        for file, changes, kept in ((name, views, [plain]), (f"{name}-piles", heaps, [])):
            for k, change in enumerate(changes, 1):
                seen = plain.clone()
                label = f"{file}, {k}"
                seen[things] = encoded(encoder, [paths[i] for i in things], change, label)
                kept.append(seen)
            save(root, file, kept)


def save(root: Path, name: str, views: list[Tensor]) -> None:
    """Writes features (n, V, 2120)."""
    features = torch.stack(views, dim=1).half()
    file = root / "stages" / f"{name}.safetensors"
    write_atomically(file, lambda p: save_file({"features": features}, p))


if __name__ == "__main__":
    main()
