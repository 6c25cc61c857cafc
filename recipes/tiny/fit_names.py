"""Fits the names of the shipped model's connector: nothing is trained, all is solved for.

    python recipes/tiny/fit_names.py --data DATA --out RUNS/names
    python recipes/tiny/fit_names.py --data DATA --held-out emojione    # to choose by

What every stage of the encoder sees in the training images, and what its classifier says, is kept
in a feature cache. Linear discriminant analysis (Fisher 1936) of it tells their names apart: what
differs between images of one name, such as a house's style, is whitened away. The encoder's own
classes name photographs.

Ridge regression (Hoerl and Kennard 1970) tells what a region of a scene holds: it leads from what
the stages see there to where the same drawing lies as a whole image. So a region can be given names
that no scene has shown. A second one tells whether anything is there.

The connector is saved with new weights in everything else.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from drawings import records_of
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.model.analysis import Discriminant, RegionMap
from isthmus.model.backbones.libraries import REGIONS
from isthmus.model.connectors.names import UNUSED, NamesConnector
from isthmus.model.discriminants import linear_discriminants
from isthmus.model.features import PatchFeatures
from isthmus.model.trust import trust
from isthmus.model.vlm import VisionLanguageModel

SOURCES = (
    "train-emoji",
    "train-openclipart",
    "train-tuxpaint-drawings",
    "train-gcompris-words",
    "train-grocery",
    "train-easyvqa-names",
)
VISION = im.VisionConfig(name="asset:efficientnet-lite2", resize="pad", regions=True, fine=8)
LANGUAGE = "asset:smollm2-135m-instruct"
NAMES = im.Names(concepts=4400)
FUSION = im.Inline(adapter=im.Adapter(rank=16, start=8))
SHRINK = 0.1
"""How far the covariance within names is drawn to the identity, as Ledoit and Wolf do."""
FARTHEST = 0.99
"""The share of training images that lie within the radius."""
SCALE = 24.0
"""Multiplies cosines before the softmax over names."""
FILLER = "."
NOTHING = " nothing"
LAYOUTS = ("scene-layouts", "crowd-layouts")
HELD_OUT_LAYOUTS = ("dev-layouts",)
"""Scenes of things that no other scene shows."""
PLACES = REGIONS[1:]
RIDGE = 0.003
"""Drawn to zero by this share of the variance of what the stages see."""
CERTAIN = 6.0
"""Multiplies the second regression, whose aims are -1 and 1, before the sigmoid."""


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


def features_of(
    root: Path, model: VisionLanguageModel, rows: list[dict[str, Any]], part: int = 512
) -> Iterator[Tensor]:
    """Features (B, rows, width) of records' images, part by part; computed where there are none."""
    cache = FeatureCache(root / "features", PatchFeatures(model.vision))
    files = [im.FileRef(root / row["image"]) for row in rows]
    cache.fill(files, workers=1)
    for i in range(0, len(files), part):
        yield cache.get(files[i : i + part])


def read(root: Path, model: VisionLanguageModel, sources: tuple[str, ...] = SOURCES) -> Data:
    """What is seen of all training images."""
    shape = model.vision.shape.regions
    assert shape is not None
    rows = [row for name in sources for row in records_of(root, name)]
    stages, scores = [], []
    for features in features_of(root, model, rows):
        _, seen, said = shape.split(features)
        stages.append(seen[:, 0].clone())
        scores.append(said[:, 0].clone())
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


@dataclass
class Parts:
    """What the stages see in regions of scenes, and what is there.

    Attributes:
        stages: (n, W).
        drawn: The name, the concept and the style of the drawing in each; None for nothing.
    """

    stages: Tensor
    drawn: list[tuple[str, str, str] | None]


def read_parts(root: Path, model: VisionLanguageModel, layouts: tuple[str, ...] = LAYOUTS) -> Parts:
    """What is seen of the regions of all scenes whose layout is on record."""
    shape = model.vision.shape.regions
    assert shape is not None
    rows = [row for name in layouts for row in records_of(root, name)]
    stages = []
    for features in features_of(root, model, rows):
        _, seen, _ = shape.split(features)
        stages.append(seen[:, 1:].flatten(0, 1).clone())
    drawn: list[tuple[str, str, str] | None] = []
    for row in rows:
        at = {p["place"]: (p["name"], p["concept"], p["style"]) for p in row["placed"]}
        drawn += [at.get(place) for place in PLACES]
    return Parts(torch.cat(stages), drawn)


def ridge(inputs: Tensor, aims: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(aims, W) weights and (aims,) offsets of centred inputs (n, W) in units of their spread."""
    centre = aims.mean(0)
    products = inputs.T @ inputs / len(inputs) + penalty * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(products, inputs.T @ (aims - centre) / len(inputs))
    return weights.T, centre


@torch.no_grad()
def solve_regions(region: RegionMap, parts: Parts, data: Data, vectors: Tensor) -> None:
    """Fills what is seen in regions from scenes.

    Args:
        region: What is filled.
        parts: The regions.
        data: Whole images.
        vectors: (n, width) where these lie in the analysis.
    """
    aims = F.normalize(vectors, dim=-1)
    place = {(r.get("concept"), r.get("source")): i for i, r in enumerate(data.rows)}
    held = torch.tensor([d is not None for d in parts.drawn])
    known = [
        (i, place[drawn[1:]])
        for i, drawn in enumerate(parts.drawn)
        if drawn is not None and drawn[1:] in place
    ]
    own, whole = (torch.tensor(index) for index in zip(*known, strict=True))
    for linear, offset, inputs, wanted in (
        (region.linear, region.offset, parts.stages[own], aims[whole]),
        (region.there_linear, region.there_offset, parts.stages, 2.0 * held[:, None] - 1),
    ):
        mean, std = inputs.mean(0), inputs.std(0).clamp(min=1e-3)
        weights, centre = ridge((inputs - mean) / std, wanted, RIDGE)
        weights = weights / std
        if linear is region.there_linear:  # one mean is kept for both
            weights, centre = CERTAIN * weights, CERTAIN * (centre + weights @ (region.mean - mean))
        else:
            region.mean.copy_(mean)
        linear.copy_(weights.view_as(linear))
        offset.copy_(centre.view_as(offset))
    print(f"{len(own):,} regions with a drawing, of {len(held):,}")


def whole_only(rows: list[dict[str, Any]], names: list[str]) -> list[int]:
    """The concepts that regions are never named: all of whose images are emoji of no object.

    Faces, signs and flags are round or square, as much else is that is seen from afar.
    """
    shown = {row["name"] for row in rows if row.get("object_like", True)}
    signs = {row["name"] for row in rows} - shown
    return [i for i, name in enumerate(names) if name in signs]


def concepts_of(model: VisionLanguageModel, names: list[str]) -> list[list[int]]:
    """Word pieces of each name, as it stands behind a space."""
    return [model.language.encode(f" {name}") for name in names]


@torch.no_grad()
def name_places(connector: NamesConnector, model: VisionLanguageModel) -> None:
    """Lets the token of each place start as the mean of its words, such as "top left"."""
    for row, place in zip(connector.places, PLACES, strict=True):
        row.copy_(connector.embeddings[list(model.language.encode(f" {place}"))].mean(dim=0))


@torch.no_grad()
def accuracy(connector: NamesConnector, data: Data, names: list[str]) -> dict[str, float]:
    """Shares of images whose likeliest concept, or one of the first three, is a right name."""
    first = third = 0
    for i in range(0, len(data.rows), 512):
        part = slice(i, i + 512)
        vectors = connector.image.vectors(data.stages[part])
        logits, trusted = connector.image.logits(vectors), trust(vectors.norm(dim=-1), 1.0)
        found = connector.mixed(logits, data.scores[part], trusted)
        top = found.topk(3, dim=-1).indices.tolist()
        for likely, row in zip(top, data.rows[part], strict=True):
            right = [names[k] in (row["name"], *row.get("names", ())) for k in likely]
            first += right[0]
            third += any(right)
    return {"first": first / len(data.rows), "of three": third / len(data.rows)}


@torch.no_grad()
def accuracy_of_regions(
    connector: NamesConnector, parts: Parts, names: list[str]
) -> dict[str, float]:
    """Shares of regions whose likeliest names are right, and that are rightly told to be empty."""
    vectors, there = connector.region(parts.stages)
    held = torch.tensor([d is not None for d in parts.drawn])
    logits = connector.image.logits(vectors)[held]
    named = (connector.names[:, 0] != UNUSED) & connector.in_regions
    logits = logits.masked_fill(~named, float("-inf"))
    top = logits.topk(3, dim=-1).indices.tolist()
    drawn = [d[0] for d in parts.drawn if d is not None]
    right = [[names[k] == name for k in own] for own, name in zip(top, drawn, strict=True)]
    return {
        "first": sum(own[0] for own in right) / len(right),
        "of three": sum(any(own) for own in right) / len(right),
        "empty or not": ((there > 0.5) == held).float().mean().item(),
    }


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
    model = im.compose(VISION, LANGUAGE, NAMES, FUSION, device="cpu")
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
    classes = sorted(records_of(options.data, "imagenet-names"), key=lambda row: row["index"])
    names = list(groups)
    names += [row["name"] for row in classes if row["name"] not in groups]
    place = {name: i for i, name in enumerate(names)}
    filler = model.language.encode(FILLER)[0]
    classes_of = [place[row["name"]] for row in classes]
    nothing = model.language.encode(NOTHING)
    signs = whole_only(data.rows, names)
    connector.set_names(concepts_of(model, names), filler, classes_of, nothing, signs)
    name_places(connector, model)
    lengths = solve(
        connector.image, data.stages, list(groups.values()), options.shrink, options.scale
    )
    vectors = connector.image.vectors(data.stages)
    solve_regions(connector.region, read_parts(options.data, model), data, vectors)
    print(f"lengths over the radius: median {lengths.median():.2f}")
    for name, part in held.items():
        trusted = trust(connector.image.vectors(part.stages).norm(dim=-1), 1.0)
        told = {k: f"{v:.1%}" for k, v in accuracy(connector, part, names).items()}
        print(name, len(part.rows), told, f"trust {trusted.mean():.2f}")
    aside = read_parts(options.data, model, HELD_OUT_LAYOUTS)
    shares = accuracy_of_regions(connector, aside, names)
    print("regions", len(aside.drawn), {k: f"{v:.1%}" for k, v in shares.items()})
    if options.out is not None:
        im.save(model, options.out)


if __name__ == "__main__":
    main()
