"""Fits the names of the shipped model's connector: nothing is trained, all is solved for.

    python recipes/tiny/fit_names.py --data DATA --out RUNS/names
    python recipes/tiny/fit_names.py --data DATA --held-out emojione    # to choose by

What every stage of the encoder sees in the training images, and what its classifier says, is kept
in a feature cache. Linear discriminant analysis (Fisher 1936) of it tells their names apart: what
differs between images of one name, such as a house's style, is whitened away. The encoder's own
classes name photographs.

A second analysis, of what the stages see in regions of scenes, names what is there: a thing looks
otherwise in a quarter of an image. Ridge regression (Hoerl and Kennard 1970) tells whether anything
is there.

The connector is saved with new weights in everything else, or with those of a run that `--init`
names, where names alone have changed since.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from drawings import records_of
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.model.analysis import Discriminant, Presence
from isthmus.model.backbones.stages import REGIONS
from isthmus.model.connectors.names import NamesConnector
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
NAMES = im.Names(concepts=4400, region_others=1)
FUSION = im.Inline(adapter=im.Adapter(rank=16, start=8))
SHRINK = 0.1
"""How far the covariance within names is drawn to the identity, as Ledoit and Wolf do."""
FARTHEST = 0.98
"""The share of training images that lie within the radius; more of them, and a photograph is taken
for a drawing more often."""
SCALE, REGION_SCALE = 24.0, 22.0
"""Multiply cosines before the softmax over names, of images and of regions."""
REGION_SHRINK = 0.03
FILLER = "."
NOTHING = " nothing"
LAYOUTS = ("scene-layouts", "crowd-layouts")
HELD_OUT_LAYOUTS = ("dev-layouts",)
"""Scenes of drawings that nothing else shows."""
PLACES = REGIONS[1:]
RIDGE = 0.003
"""Drawn to zero by this share of the variance of what the stages see."""
CERTAIN = 6.0
"""Multiplies what the regression says, whose aims are -1 and 1, before the sigmoid."""


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
def solve_presence(presence: Presence, parts: Parts) -> None:
    """Fills what tells whether anything is in a region, from scenes."""
    held = torch.tensor([[1.0 if drawn is not None else -1.0] for drawn in parts.drawn])
    mean, std = parts.stages.mean(0), parts.stages.std(0).clamp(min=1e-3)
    weights, centre = ridge((parts.stages - mean) / std, held, RIDGE)
    presence.mean.copy_(mean)
    presence.linear.copy_(CERTAIN * weights[0] / std)
    presence.offset.copy_(CERTAIN * centre[0])


def regions_by_name(parts: Parts) -> dict[str, list[int]]:
    """The regions in which each name is drawn."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, drawn in enumerate(parts.drawn):
        if drawn is not None:
            found[drawn[0]].append(i)
    return dict(found)


def said_of(row: dict[str, Any], drawn: Container[str]) -> str:
    """What a class is called: its own name if something is drawn under it, else a glance's."""
    own: str = row["name"]
    return own if own in drawn else row["glance"] or own


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
    held = torch.tensor([d is not None for d in parts.drawn])
    there = connector.presence(parts.stages)
    logits = connector.region_logits(connector.region.vectors(parts.stages[held]))
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
    parser.add_argument("--init", help="a run whose other weights are kept")
    parser.add_argument("--held-out", help="a style of emoji to choose by")
    parser.add_argument("--shrink", type=float, default=SHRINK)
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.init:
        model = im.load(options.init, device="cpu", dtype=None)
    else:
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
    said = [said_of(row, groups) for row in classes]
    names += [name for name in dict.fromkeys(said) if name not in groups]
    place = {name: i for i, name in enumerate(names)}
    filler = model.language.encode(FILLER)[0]
    classes_of = [place[name] for name in said]
    nothing = model.language.encode(NOTHING)
    parts = read_parts(options.data, model)
    seen = {name: own for name, own in regions_by_name(parts).items() if name in place}
    concepts = concepts_of(model, names)
    connector.set_names(concepts, filler, classes_of, nothing, [place[name] for name in seen])
    if not options.init:
        name_places(connector, model)
    shrink, scale = options.shrink, options.scale
    lengths = solve(connector.image, data.stages, list(groups.values()), shrink, scale)
    solve(connector.region, parts.stages, list(seen.values()), REGION_SHRINK, REGION_SCALE)
    solve_presence(connector.presence, parts)
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
