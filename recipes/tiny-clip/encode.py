"""Encodes the training images once.

    python recipes/tiny-clip/encode.py --data DATA

reads DATA/records/train-*.jsonl and the images that `recipes/tiny/prepare.py` made, and writes
DATA/stages/NAME.safetensors: `features` (n, 2120) float16, the mean and the maximum of every stage
of the encoder, then its classifier's 1,000 scores. About ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from isthmus.config.model import VisionConfig
from isthmus.files import write_atomically
from isthmus.media.image import open_image
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.clip.joined import pooled_features

VISION = VisionConfig(name="asset:efficientnet-lite2", resize="pad")
SOURCES = ("train-emoji", "train-openclipart", "train-tuxpaint-drawings", "train-gcompris-words")
WATCHED = "train-grocery"
"""Photographs that nothing is trained on: choices of the recipe were made with them in sight."""
BATCH = 16


def records_of(root: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file."""
    lines = (root / "records" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@torch.inference_mode()
def encoded(encoder: VisionEncoder, images: list[Path], label: str) -> Tensor:
    """What all stages see and the classifier says, (n, 2120), of images."""
    found = []
    for i in track(range(0, len(images), BATCH), description=label):
        pixels = [encoder.preprocess(open_image(path)) for path in images[i : i + BATCH]]
        found.append(pooled_features(encoder, torch.stack(pixels), "stages", classes=True))
    return torch.cat(found)


def main() -> None:
    """Writes the features of all sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    root: Path = parser.parse_args().data
    (root / "stages").mkdir(exist_ok=True)
    encoder = load_vision(VISION)
    for name in (*SOURCES, WATCHED):
        if name == WATCHED and not (root / "records" / f"{name}.jsonl").is_file():
            continue
        paths = [root / row["image"] for row in records_of(root, name)]
        features = encoded(encoder, paths, name).half()
        file = root / "stages" / f"{name}.safetensors"
        write_atomically(file, partial(save_file, {"features": features}))


if __name__ == "__main__":
    main()
