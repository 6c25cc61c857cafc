"""Fits the names of the shipped model's connector: nothing is trained, all is solved for.

    python recipes/tiny/fit_names.py --data DATA --out RUNS/names
    python recipes/tiny/fit_names.py --data DATA --held-out emojione    # to choose by

What every stage of the encoder sees in the training images, and what its classifier says, is kept
in a feature cache. Linear discriminant analysis (Fisher 1936) of it tells their names apart: what
differs between images of one name, such as a house's style, is whitened away. The encoder's own
classes name photographs. The connector is saved with new weights in everything else.

Three minutes on one CPU core, after the features.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.model.connectors.names import Discriminant, NamesConnector
from isthmus.model.discriminants import linear_discriminants
from isthmus.model.features import PatchFeatures
from isthmus.model.vlm import VisionLanguageModel

SOURCES = (
    "train-emoji",
    "train-openclipart",
    "train-tuxpaint-drawings",
    "train-gcompris-words",
    "train-grocery",
    "train-easyvqa-names",
)
VISION = im.VisionConfig(name="asset:efficientnet-lite2", resize="pad", regions=True)
SHRINK = 0.2
"""How far the covariance within names is drawn to the identity, as Ledoit and Wolf do."""
FARTHEST = 0.99
"""The share of training images that lie within the radius."""
SCALE = 24.0
"""Multiplies cosines before the softmax over names."""
FILLER = "."


@dataclass
class Data:
    """What the stages see in images, what the classifier says of them, and their names.

    Attributes:
        stages: (n, W).
        scores: (n, classes).
        rows: Their records.
    """

    stages: Tensor
    scores: Tensor
    rows: list[dict[str, Any]]

    def some(self, keep: list[int]) -> Data:
        """Some of the images."""
        return Data(self.stages[keep], self.scores[keep], [self.rows[i] for i in keep])


def rows_of(root: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file."""
    text = (root / "records" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read(root: Path, model: VisionLanguageModel, sources: tuple[str, ...] = SOURCES) -> Data:
    """Features of all training images; computed where they are not there yet."""
    cache = FeatureCache(root / "features", PatchFeatures(model.vision))
    shape = model.vision.shape.regions
    assert shape is not None
    stages, scores, rows = [], [], []
    for name in sources:
        own = rows_of(root, name)
        files = [im.FileRef(root / row["image"]) for row in own]
        cache.fill(files, workers=1)
        for i in range(0, len(files), 512):
            _, seen, said = shape.split(cache.get(files[i : i + 512]))
            stages.append(seen[:, 0].clone())
            scores.append(said[:, 0].clone())
        rows += own
    return Data(torch.cat(stages), torch.cat(scores), rows)


def by_name(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The images of each name."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        found[row["name"]].append(i)
    return dict(found)


@torch.no_grad()
def solve(
    analysis: Discriminant, stages: Tensor, groups: list[list[int]], shrink: float, scale: float
) -> Tensor:
    """Fills an analysis from images in groups of one name; returns (n,) lengths over the radius."""
    kept = len(analysis.linear)
    found = linear_discriminants(stages, groups, dimensions=kept, shrink=shrink, inside=FARTHEST)
    print(f"{len(groups):,} names, {found.share:.0%} of what tells them apart in {kept} dimensions")
    analysis.mean.copy_(found.mean)
    analysis.linear.copy_(found.linear / found.std / found.radius)
    vectors = (stages - found.mean) @ analysis.linear.T
    means = torch.stack([F.normalize(vectors[own], dim=-1).mean(0) for own in groups])
    analysis.means[: len(groups)] = F.normalize(means, dim=-1)
    analysis.scale.fill_(scale)
    return vectors.norm(dim=-1)


def concepts_of(model: VisionLanguageModel, names: list[str]) -> list[list[int]]:
    """Word pieces of each name, as it stands behind a space."""
    return [model.language.encode(f" {name}") for name in names]


@torch.no_grad()
def accuracy(connector: NamesConnector, data: Data, names: list[str]) -> dict[str, float]:
    """Shares of images whose likeliest concept, or one of the first three, is a right name."""
    first = third = 0
    for i in range(0, len(data.rows), 512):
        part = slice(i, i + 512)
        logits, trusted = connector.image(data.stages[part])
        found = connector.mixed(logits, data.scores[part], trusted)
        top = found.topk(3, dim=-1).indices.tolist()
        for likely, row in zip(top, data.rows[part], strict=True):
            right = [names[k] in (row["name"], *row.get("names", ())) for k in likely]
            first += right[0]
            third += any(right)
    return {"first": first / len(data.rows), "of three": third / len(data.rows)}


def main() -> None:
    """Solves, says how well held-out images are named, and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--held-out", help="a style of emoji to choose by")
    parser.add_argument("--shrink", type=float, default=SHRINK)
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = im.compose(
        VISION,
        "asset:smollm2-135m-instruct",
        im.Names(),
        im.Inline(adapter=im.Adapter(rank=16, start=8)),
        device="cpu",
    )
    connector = model.connector
    assert isinstance(connector, NamesConnector)
    data = read(options.data, model)
    held: dict[str, Data] = {}
    if options.held_out:
        style = options.held_out.partition("-")[0]
        rows = data.rows
        gone = {i for i, row in enumerate(rows) if row.get("source", "").startswith(style)}
        shown = [
            i for i in gone if rows[i]["source"] == options.held_out and rows[i]["object_like"]
        ]
        drawings = [i for i, r in enumerate(rows) if r.get("source", "").startswith("tuxpaint")]
        groceries = [i for i, r in enumerate(rows) if r.get("source", "").startswith("grocery")]
        some = drawings[::2] + groceries[::5]
        held = {
            "style": data.some(shown),
            "drawings": data.some(drawings[::2]),
            "grocery": data.some(groceries[::5]),
        }
        data = data.some([i for i in range(len(rows)) if i not in gone and i not in set(some)])
    groups = by_name(data.rows)
    classes = sorted(rows_of(options.data, "imagenet-names"), key=lambda row: row["index"])
    names = list(groups)
    names += [row["name"] for row in classes if row["name"] not in groups]
    place = {name: i for i, name in enumerate(names)}
    filler = model.language.encode(FILLER)[0]
    connector.set_names(concepts_of(model, names), filler, [place[row["name"]] for row in classes])
    lengths = solve(
        connector.image, data.stages, list(groups.values()), options.shrink, options.scale
    )
    connector.region.load_state_dict(connector.image.state_dict())
    print(f"lengths over the radius: median {lengths.median():.2f}")
    for name, part in held.items():
        _, trusted = connector.image(part.stages)
        told = {k: f"{v:.1%}" for k, v in accuracy(connector, part, names).items()}
        print(name, len(part.rows), told, f"trust {trusted.mean():.2f}")
    if options.out is not None:
        im.save(model, options.out)


if __name__ == "__main__":
    main()
