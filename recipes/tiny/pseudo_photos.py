"""Images of 1,000 photographed things without a photograph: features made from class vectors.

The encoder's own ImageNet head holds, for each class, the direction in feature space that means
it. A pseudo-photo is a real feature map (of a drawing in the training sources) whose pooled vector
has been moved along a class's direction until the head is as sure as it is of a real photograph:

    f = relu(mix * background + push * (w_class - mean of w))        at every place of the map

`push` is found per sample so that the class's logit leads all others by `--margin` nats. The
backgrounds keep the texture of real maps: without them a connector learns an artefact.

    python recipes/tiny/pseudo_photos.py --data FOLDER [--per-class 6] [--seed 0]

reads FOLDER/records/imagenet-names.jsonl and FOLDER/records/train-*.jsonl, and writes
FOLDER/pseudo/*.npy (81 x 1280, float16) and FOLDER/records/train-imagenet-head.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from drawings import records_of
from safetensors.torch import load_file
from torch import Tensor

from isthmus import VisionConfig, load_vision, read_records
from isthmus.assets.registry import fetch_asset
from isthmus.data.features import FeatureCache
from isthmus.data.records import frames
from isthmus.model.features import PatchFeatures

ENCODER = VisionConfig(name="asset:efficientnet-lite2", resize="pad")
BACKGROUNDS = ("train-emoji.jsonl", "train-openclipart.jsonl", "train-grocery.jsonl")


def class_vectors() -> tuple[Tensor, Tensor]:
    """The head's (1000, 1280) weight and (1000,) bias."""
    state = load_file(fetch_asset("efficientnet-lite2") / "model.safetensors")
    return state["classifier.weight"].float(), state["classifier.bias"].float()


def pseudo_map(
    background: Tensor, own: int, weight: Tensor, bias: Tensor, mix: float, margin: float
) -> Tensor:
    """A feature map (N, D) that the head takes for class `own` with a margin.

    Args:
        background: (N, D) features of a real image, non-negative.
        own: The class.
        weight: (C, D) the head's weight.
        bias: (C,) its bias.
        mix: Share of the background that stays.
        margin: Lead of the class's logit over the best other, in nats.
    """
    direction = weight[own] - weight.mean(dim=0)
    base = mix * background
    low, high = 0.0, 64.0
    for _ in range(20):  # the lead grows with the push, so bisection finds it
        push = (low + high) / 2
        logits = (base + push * direction).relu().mean(dim=0) @ weight.T + bias
        others = logits.clone()
        others[own] = -torch.inf
        low, high = (push, high) if logits[own] - others.max() < margin else (low, push)
    return (base + high * direction).relu()


def main() -> None:
    """Writes the feature maps and their records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=6)
    parser.add_argument("--margin", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    root: Path = options.data
    names = records_of(root, "imagenet-names")
    images = sorted(
        {
            image
            for file in BACKGROUNDS
            if (root / "records" / file).is_file()
            for record in read_records(root / "records" / file, root)
            for image in frames(record.images[0])
        },
        key=str,
    )
    cache = FeatureCache(root / "features", PatchFeatures(load_vision(ENCODER)))
    cache.fill(images)
    weight, bias = class_vectors()
    generator = np.random.default_rng(options.seed)
    (root / "pseudo").mkdir(exist_ok=True)
    with (root / "records" / "train-imagenet-head.jsonl").open("w", encoding="utf-8") as out:
        for entry in names:
            for copy in range(options.per_class):
                image = images[generator.integers(len(images))]
                mix = float(generator.uniform(0.2, 0.7))
                margin = float(options.margin * generator.uniform(0.5, 2.0))
                features = pseudo_map(
                    cache.get([image])[0], entry["index"], weight, bias, mix, margin
                )
                path = f"pseudo/{entry['index']:04d}-{copy}.npy"
                np.save(root / path, features.numpy().astype(np.float16))
                record = {"features": path, "name": entry["name"], "names": entry["names"]}
                record |= {"hypernyms": entry["hypernyms"], "source": "imagenet-head"}
                out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
