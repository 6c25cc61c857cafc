"""Makes the heads of the shipped dual encoder: the image head is solved for, the text head trained.

    python recipes/tiny-clip/train_heads.py --data DATA --out RUNS/tiny-clip
    python recipes/tiny-clip/train_heads.py --data DATA --held-out emojione   # to choose by

Both towers stay as they are, so everything works on features that `encode.py` computed once.

1. The first part of an image's vector knows drawings. It is linear discriminant analysis (Fisher
   1936) of what every stage of the encoder sees: what differs between images of one name, such
   as a house's style, is whitened away, and what is left of the names' means is kept in its first
   principal components. Nothing is trained, so nothing is learned by heart.
2. The second part knows photographs. It is what the encoder's own ImageNet classifier sees, said
   in words: its classes' probabilities mix the text encoder's vectors of the classes' names and of
   what these are kinds of (`isthmus.model.clip.class_mixture`). No image is needed for it.
3. How far an image is from the drawings decides which part speaks to texts.
4. The text head, a linear map and a network beside it, is trained contrastively to meet the first
   part; for the second, a text's vector is the text encoder's, its directions evened out.

About three minutes on two CPU cores, after `encode.py`.
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
from encode import SOURCES, VISION, WATCHED, records_of
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from isthmus.files import write_atomically
from isthmus.model.clip.checkpoint import save_clip
from isthmus.model.clip.class_mixture import ClassMixtureConfig
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig, JoinedImageTower, JoinedTextTower
from isthmus.model.discriminants import linear_discriminants
from isthmus.training.losses.contrastive import clip_loss

DRAWN, CLASSES, HIDDEN = 512, 384, 2048
"""Widths of the two parts, the second the text encoder's own, and hidden units of the text head."""
TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "this is a {}",
)
SHRINK = 0.2
"""How far the covariance within names is drawn to the identity, as Ledoit and Wolf do."""
CLASS_TEMPERATURE = 1.25
"""Divides the classifier's scores."""
KINDS = 0.5
"""Weight of what a class is a kind of, beside its name, in its vector."""
EVENED = 0.5
"""How far the spread of names in the text encoder's directions is evened out; 1 whitens it."""
CLASS_SCALE = 3.0
"""Length of the classes' vectors, by which a doubtful classifier speaks about as loud as a head."""
FARTHEST = 0.99
"""The share of training images that lie within the radius."""
OTHER = 0.2
"""Weight of images of no things: flags, faces, signs."""
OTHER_NAMES = 0.5
"""How often an image goes by another of its names than its first."""
WIDER = 0.1
"""How often an image goes by what it is a kind of."""
DROPPED = 0.2
TEMPERATURE = 20.0
OWN_CLASSES = 1000
"""The classifier's scores, last in the features."""


@dataclass
class Data:
    """Training images, and the classifier's classes.

    Attributes:
        features: (n, W), scores of the classes last.
        rows: Their records.
        classes: The classes' records, in the order of their scores.
        held: Features and records by which nothing is trained.
    """

    features: Tensor
    rows: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    held: dict[str, tuple[Tensor, list[dict[str, Any]]]]


def read(root: Path, held_out: str | None, seed: int) -> Data:
    """All features and records; with `held_out`, some are apart, to choose by.

    These are a style of emoji, half of Tux Paint's drawings, and Grocery's training photographs,
    which are never trained on.
    """
    parts, rows = [], []
    for name in SOURCES:
        parts.append(load_file(root / "stages" / f"{name}.safetensors")["features"].float())
        rows += records_of(root, name)
    features = torch.cat(parts)
    rng = np.random.default_rng(seed)
    held: dict[str, tuple[Tensor, list[dict[str, Any]]]] = {}
    if held_out is not None:
        style = held_out.partition("-")[0]  # styles of one house share their designs
        gone = {i for i, row in enumerate(rows) if row["source"].startswith(style)}
        shown = [i for i in gone if rows[i]["source"] == held_out and rows[i]["object_like"]]
        held["style"] = features[shown], [rows[i] for i in shown]
        drawings = [i for i, row in enumerate(rows) if row["source"].startswith("tuxpaint")]
        some = [int(i) for i in rng.permutation(drawings)[: len(drawings) // 2]]
        held["drawings"] = features[some], [rows[i] for i in some]
        kept = [i for i in range(len(rows)) if i not in gone and i not in some]
        features, rows = features[kept], [rows[i] for i in kept]
        watched = root / "stages" / f"{WATCHED}.safetensors"
        if watched.is_file():
            seen = load_file(watched)["features"].float()
            held["photographs"] = seen, records_of(root, WATCHED)
    classes = sorted(records_of(root, "imagenet-names"), key=lambda row: row["index"])
    return Data(features, rows, classes, held)


def towers_of(model: DualEncoder) -> tuple[JoinedImageTower, JoinedTextTower]:
    """Both towers, each an encoder and a head."""
    image, text = model.image, model.text
    assert isinstance(image, JoinedImageTower)
    assert isinstance(text, JoinedTextTower)
    return image, text


def by_name(data: Data) -> dict[str, list[int]]:
    """The images of each name."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(data.rows):
        found[row["name"]].append(i)
    return found


@torch.no_grad()
def solve_image_head(model: DualEncoder, data: Data, shrink: float) -> None:
    """Fills the image head's linear map, and the mixture's radius."""
    head = towers_of(model)[0].head
    stages = data.features[:, :-OWN_CLASSES]
    names = by_name(data)
    things = [own for own in names.values() if data.rows[own[0]].get("object_like", True)]
    found = linear_discriminants(
        stages,
        list(names.values()),
        dimensions=DRAWN,
        shrink=shrink,
        inside=FARTHEST,
        between=things,
    )
    head.mean.copy_(found.mean)
    head.std.copy_(found.std)
    print(
        f"{len(things):,} names, {found.share:.0%} of what tells them apart in {DRAWN} dimensions"
    )

    def length(features: Tensor) -> Tensor:
        standard = (features[:, :-OWN_CLASSES] - head.mean) / head.std
        return (standard @ found.linear.T).norm(dim=-1).median() / found.radius

    print(f"lengths over the radius: median {length(data.features):.2f}", end="")
    for name, (features, _) in data.held.items():
        print(f", {name} {length(features):.2f}", end="")
    print()
    # in units of the radius, which the mixture's configuration is then 1
    head.linear.weight.copy_(found.linear / found.radius)
    head.linear.bias.zero_()


def embedded(model: DualEncoder, root: Path, names: list[str]) -> Tensor:
    """The text encoder's vectors (templates, names, 384), computed once."""
    file = root / "stages" / "texts.safetensors"
    said = json.dumps([TEMPLATES, names])
    if file.is_file() and (root / "stages" / "texts.json").read_text(encoding="utf-8") == said:
        return load_file(file)["vectors"]
    tower = towers_of(model)[1]
    found = []
    for template in TEMPLATES:
        parts = []
        for i in track(range(0, len(names), 256), description=template):
            tokens = tower.tokenize([template.format(n) for n in names[i : i + 256]])
            with torch.no_grad():
                parts.append(tower.encoder(**tokens))
        found.append(torch.cat(parts))
    vectors = torch.stack(found)
    write_atomically(file, lambda p: save_file({"vectors": vectors}, p))
    (root / "stages" / "texts.json").write_text(said, encoding="utf-8")
    return vectors


@torch.no_grad()
def name_classes(model: DualEncoder, data: Data, texts: Tensor, place: dict[str, int]) -> Tensor:
    """Fills the mixture's vectors and the text head's part for them.

    Returns:
        The centre of all names' vectors, (384,).
    """

    def mean_over_templates(names: list[str]) -> Tensor:
        return F.normalize(texts[:, [place[name] for name in names]].mean(0), dim=-1)

    own = mean_over_templates([row["name"] for row in data.classes])
    kinds = mean_over_templates([[*row["hypernyms"], row["name"]][0] for row in data.classes])
    centre = own.mean(0)
    spread, axes = torch.linalg.eigh(torch.cov(mean_over_templates(list(place)).T))
    evened = axes @ torch.diag((spread + spread.mean()) ** (-EVENED / 2)) @ axes.T
    evened = evened / evened.diagonal().mean()
    said = F.normalize((F.normalize(own + KINDS * kinds, dim=-1) - centre) @ evened, dim=-1)
    image, text = towers_of(model)
    assert image.mixture is not None
    image.mixture.vectors.copy_(CLASS_SCALE * said)
    head = text.head
    head.mean.copy_(centre)
    head.std.copy_((texts - centre).flatten(0, 1).std(0).clamp(min=0.01))
    head.linear.weight[DRAWN:] = evened * head.std
    head.linear.bias.zero_()
    return centre


def train_text_head(
    model: DualEncoder, data: Data, texts: Tensor, place: dict[str, int], options: Any
) -> None:
    """Trains the text head's first part and the temperature against the image tower as it is."""
    rng = np.random.default_rng(options.seed)
    image, text = towers_of(model)
    head = text.head
    assert head.mlp is not None
    last: Any = head.mlp[-1]
    centre = name_classes(model, data, texts, place)
    with torch.no_grad():
        images = F.normalize(image.map(data.features), dim=-1)
        names = by_name(data)
        x = torch.stack([texts[:, place[n]].mean(0) for n in names])
        x = (x - centre) / head.std
        y = torch.stack([images[own, :DRAWN].mean(0) for own in names.values()])
        ridge = torch.linalg.solve(x.T @ x + 400.0 * torch.eye(x.shape[1]), x.T @ y)
        head.linear.weight[:DRAWN] = ridge.T
        model.logit_scale.fill_(math.log(TEMPERATURE))
    groups = [
        {"params": head.parameters(), "weight_decay": 0.05},
        {"params": [model.logit_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    weights = np.array([1.0 if row.get("object_like", True) else OTHER for row in data.rows])
    weights /= weights.sum()
    fixed = head.linear.weight[DRAWN:].detach().clone()

    def name_for(row: dict[str, Any]) -> str:
        if row.get("hypernyms") and rng.random() < WIDER:
            return str(rng.choice(row["hypernyms"]))
        return str(rng.choice(row["names"])) if rng.random() < OTHER_NAMES else row["name"]

    head.train()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 50)
        rate = warm * (0.02 + 0.5 * (1 + math.cos(math.pi * step / options.steps)))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        i = rng.choice(len(data.rows), options.batch, p=weights, replace=False)
        seen = F.normalize(F.dropout(images[i], DROPPED), dim=-1)
        ids = torch.tensor([place[name_for(data.rows[k])] for k in i])
        template = torch.from_numpy(rng.integers(len(TEMPLATES), size=len(i)))
        said = text.map(texts[template, ids])
        factor = model.logit_scale.exp().clamp(max=100)
        loss = clip_loss(seen, F.normalize(said, dim=-1), factor, names=ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():  # the second part stays the text's own vector
            head.linear.weight[DRAWN:] = fixed
            head.linear.bias[DRAWN:] = 0
            last.weight[DRAWN:] = 0
            last.bias[DRAWN:] = 0
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            told = {n: f"{accuracy(model, texts, place, *v):.1%}" for n, v in data.held.items()}
            told |= {"loss": f"{loss:.3f}", "factor": f"{factor:.1f}"}
            print(f"step {step + 1}", told, flush=True)


@torch.no_grad()
def accuracy(
    model: DualEncoder,
    texts: Tensor,
    place: dict[str, int],
    features: Tensor,
    rows: list[dict[str, Any]],
) -> float:
    """Share of images whose name comes first among the names of all of them."""
    image, text = towers_of(model)
    text.head.eval()
    labels = sorted({row["name"] for row in rows})
    each = F.normalize(text.map(texts[:, [place[n] for n in labels]]), dim=-1)
    words = F.normalize(each.mean(0), dim=-1)
    first = (F.normalize(image.map(features), dim=-1) @ words.T).argmax(1)
    text.head.train()
    right = [labels[k] in (r["name"], *r["names"]) for k, r in zip(first, rows, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    """Solves, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--held-out", help="a style of emoji to choose by")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--shrink", type=float, default=SHRINK, help="1 whitens nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = DualEncoder.join(
        VISION,
        "asset:minilm-l6-v2",
        width=DRAWN + CLASSES,
        pooling="stages",
        image_head=HeadConfig(),
        text_head=HeadConfig(hidden=HIDDEN, dropout=0.1),
        mixture=ClassMixtureConfig(width=CLASSES, temperature=CLASS_TEMPERATURE),
    )
    data = read(options.data, options.held_out, options.seed)
    solve_image_head(model, data, options.shrink)
    names = {
        n
        for name in (*SOURCES, "imagenet-names", *([WATCHED] if "photographs" in data.held else []))
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
        save_clip(model.eval(), options.out, dtype=torch.float16, extra={"train": told})
        size = (options.out / "model.safetensors").stat().st_size
        print(f"saved {options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
