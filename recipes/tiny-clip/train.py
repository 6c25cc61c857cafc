"""Makes the heads of the shipped dual encoder: the image head is solved for, the text head trained.

    python recipes/tiny-clip/train.py --data DATA --out RUNS/tiny-clip
    python recipes/tiny-clip/train.py --data DATA --held-out emojione   # to choose by

Both towers stay as they are, so everything works on features that `encode.py` computed once.

1. Photographs are stood in for by the encoder's own ImageNet head: a drawing's features are moved
   along a class's direction until the head is sure of it (why: `recipes/tiny/pseudo_photos.py`).
2. The image head is linear discriminant analysis (Fisher 1936): what differs between pictures of
   one name - style, view, background - is whitened away, and what is left of the names' means is
   kept in its first principal components. Nothing is trained, so nothing is learned by heart.
3. The text head, a linear map and a network beside it, is trained contrastively to meet it.

About five minutes on two CPU cores, after `encode.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode import SOURCES, VISION, records_of
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.joined import HeadConfig
from isthmus.align.losses import clip_loss
from isthmus.align.saved import save_dual_encoder
from isthmus.assets import fetch
from isthmus.checkpoint import write_atomically

WIDTH, HIDDEN = 512, 2048
TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "this is a {}",
)
COPIES = 8
"""Stand-ins for each photographed class."""
PHOTOS_SHARE = 0.2
"""Their share in what differs within a name."""
SHRINK = 0.3
"""How far that covariance is drawn to the identity, as Ledoit and Wolf do; chosen by trial."""
POWER = 0.5
"""Exponent of the features; chosen by trial. One scale for all means and one for all maxima: scaled
each by its own, channels that are dark in drawings would be loud in photographs."""
OTHER = 0.2
"""Weight of pictures of no things: flags, faces, signs."""
OTHER_NAMES = 0.5
"""How often a picture goes by another of its names than its first."""
WIDER = (0.1, 0.3)
"""How often a picture, and a photographed class, goes by what it is a kind of."""
PHOTOS_IN_BATCH = 0.5
DROPPED = 0.2
TEMPERATURE = 20.0
IN_MEAN = 1280
"""Width of the mean in the pooled features; the maximum follows."""


@dataclass
class Data:
    """Training pictures and photographed classes.

    Attributes:
        features: (n, views, 2560).
        rows: Their records.
        photos: (COPIES, C, 2560) stand-ins.
        classes: The classes' records.
        held: Features and records by which nothing is trained.
    """

    features: Tensor
    rows: list[dict[str, Any]]
    photos: Tensor
    classes: list[dict[str, Any]]
    held: dict[str, tuple[Tensor, list[dict[str, Any]]]]


def read(root: Path, held_out: str | None, seed: int) -> Data:
    """All features and records; with `held_out`, one style and half of the drawings apart."""
    parts, rows = [], []
    for name in SOURCES:
        parts.append(load_file(root / "pooled" / f"{name}.safetensors")["features"].float())
        rows += records_of(root, name)
    features = torch.cat(parts)
    rng = np.random.default_rng(seed)
    held: dict[str, tuple[Tensor, list[dict[str, Any]]]] = {}
    if held_out is not None:
        style = held_out.partition("-")[0]  # styles of one house share their designs
        gone = {i for i, row in enumerate(rows) if row["source"].startswith(style)}
        shown = [i for i in gone if rows[i]["source"] == held_out and rows[i]["object_like"]]
        held["style"] = features[shown, 0], [rows[i] for i in shown]
        drawings = [i for i, row in enumerate(rows) if row["source"].startswith("tuxpaint")]
        some = [int(i) for i in rng.permutation(drawings)[: len(drawings) // 2]]
        held["drawings"] = features[some, 0], [rows[i] for i in some]
        kept = [i for i in range(len(rows)) if i not in gone and i not in some]
        features, rows = features[kept], [rows[i] for i in kept]
    classes = sorted(records_of(root, "imagenet-names"), key=lambda row: row["index"])
    photos = stand_ins(features[:, 0])
    if held_out is not None:
        out = sorted(int(i) for i in rng.permutation(len(classes))[:200])
        held["classes"] = photos[:2, out].flatten(0, 1), [classes[i] for i in out] * 2
        kept = [i for i in range(len(classes)) if i not in out]
        photos, classes = photos[:, kept], [classes[i] for i in kept]
    return Data(features, rows, photos, classes, held)


def stand_ins(drawings: Tensor) -> Tensor:
    """Features (COPIES, 1000, 2560) that the ImageNet head takes for each of its classes."""
    state = load_file(fetch("efficientnet-lite2") / "model.safetensors")
    weight, bias = state["classifier.weight"].float(), state["classifier.bias"].float()
    direction = weight - weight.mean(0)
    mean, most = drawings[:, :IN_MEAN], drawings[:, IN_MEAN:]
    slope = ((mean - mean.mean(0)) * (most - most.mean(0))).sum(0)
    slope = slope / (mean - mean.mean(0)).square().sum(0)
    start = most.mean(0) - slope * mean.mean(0)
    noise = (most - slope * mean - start).std(0)
    own = torch.arange(len(weight))
    found = []
    for _ in range(COPIES):
        mix = torch.empty(len(weight), 1).uniform_(0.1, 0.6)
        base = mean[torch.randint(len(mean), (len(weight),))] * mix
        margin = torch.empty(len(weight)).uniform_(2, 8)
        low, high = torch.zeros(len(weight)), torch.full((len(weight),), 64.0)
        for _ in range(12):  # the lead grows with the push, so bisection finds it
            push = (low + high) / 2
            logits = (base + push[:, None] * direction).relu() @ weight.T + bias
            mine = logits[own, own].clone()
            logits[own, own] = -torch.inf
            less = mine - logits.amax(1) < margin
            low, high = torch.where(less, push, low), torch.where(less, high, push)
        pooled = (base + high[:, None] * direction).relu()
        peak = (pooled * slope + start + noise * torch.randn_like(pooled)).clamp(0, 6)
        found.append(torch.cat([pooled, torch.maximum(peak, pooled.clamp(max=6))], 1))
    return torch.stack(found)


def by_name(data: Data) -> dict[str, list[int]]:
    """The pictures of each name."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(data.rows):
        found[row["name"]].append(i)
    return found


@torch.no_grad()
def solve_image_head(model: DualEncoder, data: Data, shrink: float) -> None:
    """Fills the image head's linear map."""
    head = model.image.head
    everything = data.features.flatten(0, 1) ** POWER
    head.mean.copy_(everything.mean(0))
    head.std[:IN_MEAN] = everything[:, :IN_MEAN].std()
    head.std[IN_MEAN:] = everything[:, IN_MEAN:].std()

    def standard(x: Tensor) -> Tensor:
        return (x**POWER - head.mean) / head.std

    names = by_name(data)
    width = everything.shape[1]
    drawn = torch.zeros(width, width)
    for own in names.values():
        if len(own) > 1:
            apart = standard(data.features[own]).flatten(0, 1)
            apart = apart - apart.mean(0)
            drawn += apart.T @ apart
    apart = (standard(data.photos) - standard(data.photos).mean(0)).flatten(0, 1)
    photographed = apart.T @ apart
    within = (1 - PHOTOS_SHARE) * drawn / drawn.diagonal().mean()
    within += PHOTOS_SHARE * photographed / photographed.diagonal().mean()
    within = (1 - shrink) * within + shrink * torch.eye(width)
    root = torch.linalg.cholesky(within)
    whiten = torch.linalg.solve_triangular(root, torch.eye(width), upper=False)
    things = [own for own in names.values() if data.rows[own[0]].get("object_like", True)]
    means = [standard(data.features[own]).mean((0, 1)) for own in things]
    prototypes = F.normalize(torch.stack([*means, *standard(data.photos).mean(0)]) @ whiten.T)
    _, values, axes = torch.linalg.svd(prototypes - prototypes.mean(0), full_matrices=False)
    kept = values[:WIDTH].square().sum() / values.square().sum()
    print(f"{len(prototypes):,} names, {kept:.0%} of what tells them apart in {WIDTH} dimensions")
    head.linear.weight.copy_(axes[:WIDTH] @ whiten)
    head.linear.bias.zero_()


def embedded(model: DualEncoder, root: Path, names: list[str]) -> Tensor:
    """The text encoder's vectors (templates, names, 384), computed once."""
    file = root / "pooled" / "texts.safetensors"
    said = json.dumps([TEMPLATES, names])
    if file.is_file() and (root / "pooled" / "texts.json").read_text(encoding="utf-8") == said:
        return load_file(file)["vectors"]
    encoder, tower = model.text.encoder, model.text
    found = []
    for template in TEMPLATES:
        parts = []
        for i in track(range(0, len(names), 256), description=template):
            tokens = tower.tokenize([template.format(n) for n in names[i : i + 256]])
            with torch.no_grad():
                parts.append(encoder(**tokens))
        found.append(torch.cat(parts))
    vectors = torch.stack(found)
    write_atomically(file, lambda p: save_file({"vectors": vectors}, p))
    (root / "pooled" / "texts.json").write_text(said, encoding="utf-8")
    return vectors


def train_text_head(
    model: DualEncoder, data: Data, texts: Tensor, place: dict[str, int], options: Any
) -> None:
    """Trains the text head and the temperature against the image head as it is."""
    rng = np.random.default_rng(options.seed)
    head, image = model.text.head, model.image.head
    with torch.no_grad():
        drawn = F.normalize(image(data.features.flatten(0, 1)), dim=-1)
        drawn = drawn.view(*data.features.shape[:2], -1)
        photographed = F.normalize(image(data.photos.flatten(0, 1)), dim=-1)
        photographed = photographed.view(*data.photos.shape[:2], -1)
        centre = texts[0].mean(0)
        head.mean.copy_(centre)
        head.std.copy_((texts - centre).flatten(0, 1).std(0).clamp(min=0.01))
        names = by_name(data)
        said = [texts[:, place[n]].mean(0) for n in names]
        said += [texts[:, place[c["name"]]].mean(0) for c in data.classes]
        meant = [drawn[own].mean((0, 1)) for own in names.values()] + [*photographed.mean(0)]
        x, y = (torch.stack(said) - centre) / head.std, torch.stack(meant)
        ridge = torch.linalg.solve(x.T @ x + 400.0 * torch.eye(x.shape[1]), x.T @ y)
        head.linear.weight.copy_(ridge.T)
        head.linear.bias.zero_()
        model.logit_scale.fill_(math.log(TEMPERATURE))
    groups = [
        {"params": head.parameters(), "weight_decay": 0.05},
        {"params": [model.logit_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    weights = np.array([1.0 if row.get("object_like", True) else OTHER for row in data.rows])
    weights /= weights.sum()
    many = int(options.batch * PHOTOS_IN_BATCH)

    def name_for(row: dict[str, Any], wider: float) -> str:
        if row.get("hypernyms") and rng.random() < wider:
            return str(rng.choice(row["hypernyms"]))
        return str(rng.choice(row["names"])) if rng.random() < OTHER_NAMES else row["name"]

    model.text.head.train()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 50)
        rate = warm * (0.02 + 0.5 * (1 + math.cos(math.pi * step / options.steps)))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        i = rng.choice(len(data.rows), options.batch - many, p=weights, replace=False)
        j = rng.integers(len(data.classes), size=many)
        views = rng.integers(data.features.shape[1], size=len(i))
        copies = rng.integers(COPIES, size=many)
        pictures = torch.cat([drawn[i, views], photographed[copies, j]])
        pictures = F.normalize(F.dropout(pictures, DROPPED), dim=-1)
        chosen = [name_for(data.rows[k], WIDER[0]) for k in i]
        chosen += [name_for(data.classes[k], WIDER[1]) for k in j]
        ids = torch.tensor([place[name] for name in chosen])
        template = torch.from_numpy(rng.integers(len(TEMPLATES), size=len(chosen)))
        words = F.normalize(head(texts[template, ids]), dim=-1)
        factor = model.logit_scale.exp().clamp(max=100)
        loss = clip_loss(pictures, words, factor, names=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            told = {n: f"{accuracy(model, texts, place, *v):.1%}" for n, v in data.held.items()}
            print(f"step {step + 1}, loss {loss.item():.3f}, {factor.item():.1f}", told, flush=True)


@torch.no_grad()
def accuracy(
    model: DualEncoder,
    texts: Tensor,
    place: dict[str, int],
    features: Tensor,
    rows: list[dict[str, Any]],
) -> float:
    """Share of pictures whose name comes first among the names of all of them."""
    model.text.head.eval()
    labels = sorted({row["name"] for row in rows})
    each = F.normalize(model.text.head(texts[:, [place[n] for n in labels]]), dim=-1)
    words = F.normalize(each.mean(0), dim=-1)
    first = (F.normalize(model.image.head(features), dim=-1) @ words.T).argmax(1)
    model.text.head.train()
    right = [labels[k] in (r["name"], *r["names"]) for k, r in zip(first, rows, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    """Solves, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--held-out", help="a style of emoji to choose by")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--shrink", type=float, default=SHRINK, help="1 whitens nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = DualEncoder.join(
        VISION,
        "asset:minilm-l6-v2",
        width=WIDTH,
        pooling="mean_max",
        image_head=HeadConfig(power=POWER),
        text_head=HeadConfig(hidden=HIDDEN, dropout=0.1),
    )
    data = read(options.data, options.held_out, options.seed)
    solve_image_head(model, data, options.shrink)
    names = {
        n
        for name in (*SOURCES, "imagenet-names")
        for r in records_of(options.data, name)
        for n in (r["name"], *r["names"], *r.get("hypernyms", ()))
    }
    listed = sorted(names)
    place = {name: k for k, name in enumerate(listed)}
    texts = embedded(model, options.data, listed)
    train_text_head(model, data, texts, place, options)
    if options.out is not None:
        told = {
            k: v
            for k, v in vars(options).items()
            if k in ("steps", "batch", "lr", "shrink", "seed")
        }
        save_dual_encoder(model.eval(), options.out, dtype=torch.float16, extra={"train": told})
        size = (options.out / "model.safetensors").stat().st_size
        print(f"saved {options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
