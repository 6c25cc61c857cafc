"""Encodes the training pictures once, as they are and in four changed views.

    python recipes/tiny-clip/encode.py --data DATA

reads DATA/records/train-*.jsonl and the pictures that `recipes/tiny/prepare.py` made, and writes
DATA/pooled/NAME.safetensors: `features` (n, 1 + VIEWS, 2560) float16, the mean and the maximum of
each view's features. A view is mirrored, made smaller, turned, shifted in hue, paler or more
vivid: what a name survives. Pictures that are no things (flags, faces, signs) are encoded as they
are alone, and their views repeat that. About an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
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
VIEWS = 4
WHITE = (255, 255, 255)
BATCH = 16


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
    encoder: VisionEncoder, pictures: list[Path], rng: random.Random | None, label: str
) -> Tensor:
    """Pooled features (n, 2560) of pictures, each changed by `rng` if there is one."""
    found = []
    for i in track(range(0, len(pictures), BATCH), description=label):
        opened = [open_picture(path) for path in pictures[i : i + BATCH]]
        if rng is not None:
            opened = [changed(picture, rng) for picture in opened]
        pixels = torch.stack([encoder.preprocess(picture) for picture in opened])
        found.append(pooled_features(encoder, pixels, "mean_max"))
    return torch.cat(found)


def main() -> None:
    """Writes the features of all sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root: Path = parser.parse_args().data
    (root / "pooled").mkdir(exist_ok=True)
    encoder = load_vision(VISION)
    generators = [random.Random(view) for view in range(1, VIEWS + 1)]
    for name in SOURCES:
        rows = records_of(root, name)
        things = [i for i, row in enumerate(rows) if row.get("object_like", True)]
        paths = [root / row["image"] for row in rows]
        plain = encoded(encoder, paths, None, name)
        views = [plain]
        for view, rng in enumerate(generators, 1):
            seen = plain.clone()
            seen[things] = encoded(encoder, [paths[i] for i in things], rng, f"{name}, view {view}")
            views.append(seen)
        features = torch.stack(views, dim=1).half()
        file = root / "pooled" / f"{name}.safetensors"
        write_atomically(file, lambda p, f=features: save_file({"features": f}, p))


if __name__ == "__main__":
    main()
