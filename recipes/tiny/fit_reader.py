"""Trains the reader of printed words in the shipped model's connector.

    python recipes/tiny/fit_reader.py --data DATA --init RUNS/names --out RUNS/reader

The reader is shown an early feature map of the encoder, which a feature cache keeps together with
all else that the connector reads. Its loss is that of connectionist temporal classification on
words; in the first half also that of the right letter in the column of its middle, which the boxes
of letters tell, so that it need not find the order by itself. A logistic regression then tells
words from pictures of other sources, which have no text. Words and typefaces of dev-printed are in
no training picture.

A quarter of an hour on one CPU core, after the features.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawings import records_of
from fit_names import FUSION, LANGUAGE, NAMES, VISION, features_of
from torch import Tensor, nn
from torch.nn import functional as F

import isthmus as im
from isthmus.evaluation.metrics import character_error_rate
from isthmus.model.checkpoint import load_strip
from isthmus.model.connectors.names import SURE, NamesConnector
from isthmus.model.connectors.reading import ALPHABET, Reader, as_text, likeliest
from isthmus.model.vlm import VisionLanguageModel

SIDE = 260
"""Pixels of a picture's side, in which the boxes of letters are told."""
WIDTH = 128
OTHERS = {
    "train-emoji": 2000,
    "train-scenes": 800,
    "train-grocery": 500,
    "train-easyvqa-names": 300,
    "train-openclipart": 500,
    "train-tuxpaint-drawings": 300,
}
"""Pictures of other sources, of which the last tenth is kept aside to choose by."""
WRITTEN = "symbols"
"""The group of emoji some of which show letters."""
LR, DECAY, CLIP = 2e-3, 0.02, 5.0
BATCH = 32
ROWS = 19
"""Rows of the map that are trained on at a time, of 33: the tallest words have no more."""
RIDGE = 1e-3
"""Weight of the squared weights that tell text."""
BOXES = 4.0
"""Weight of the loss by boxes at the start."""


@dataclass
class Pictures:
    """Early feature maps of pictures, in half precision, and their records."""

    maps: Tensor
    rows: list[dict[str, Any]]


def read(root: Path, model: VisionLanguageModel, rows: list[dict[str, Any]]) -> Pictures:
    """Maps of pictures; computed where they are not there yet."""
    shape = model.vision.shape.regions
    assert shape is not None
    parts = features_of(root, model, rows, part=64)
    return Pictures(torch.cat([shape.fine_map(part).half() for part in parts]), rows)


def others(root: Path, random: np.random.Generator) -> list[dict[str, Any]]:
    """Records of pictures without text, in an order drawn at random."""
    found = []
    for name, count in OTHERS.items():
        rows = {row["image"]: row for row in records_of(root, name) if row.get("group") != WRITTEN}
        listed = list(rows.values())
        found += [listed[i] for i in random.permutation(len(listed))[:count]]
    return [found[i] for i in random.permutation(len(found))]


def letters_of(word: str) -> Tensor:
    """The numbers of a word's letters."""
    return torch.tensor([ALPHABET.index(letter) + 1 for letter in word])


def in_columns(row: dict[str, Any], columns: int) -> Tensor:
    """(columns,) the letter whose middle is in each column, 0 elsewhere."""
    found = torch.zeros(columns, dtype=torch.long)
    for (left, _, right, _), letter in zip(row["boxes"], letters_of(row["answer"]), strict=True):
        found[min(int((left + right) / 2 / SIDE * columns), columns - 1)] = letter
    return found


def loss_of(
    logits: Tensor, words: list[Tensor], columns: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The loss on words, and the weighted one by boxes, of logits (B, w, 1 + alphabet)."""
    likely = logits.log_softmax(dim=-1)
    lengths = torch.tensor([len(word) for word in words])
    widths = torch.full_like(lengths, logits.shape[1])
    order = F.ctc_loss(
        likely.transpose(0, 1), torch.cat(words), widths, lengths, zero_infinity=True
    )
    if not weight:
        return order, torch.zeros(())
    share = torch.where(columns > 0, 1.0, 0.3)
    each = F.nll_loss(likely.transpose(1, 2), columns, reduction="none")
    return order, weight * (each * share).sum() / share.sum()


def window(words: Pictures, which: list[int]) -> Tensor:
    """Maps of words, in `ROWS` rows drawn at random among those that hold the whole word.

    What is far above or below says nothing of a word, and costs as much as the word does.
    """
    height = words.maps.shape[-2]
    found = []
    for i in which:
        tops, bottoms = zip(*((box[1], box[3]) for box in words.rows[i]["boxes"]), strict=True)
        top, bottom = (edge / SIDE * height for edge in (min(tops), max(bottoms)))
        first, last = sorted((max(0, int(bottom) + 1 - ROWS), min(height - ROWS, int(top))))
        start = int(torch.randint(first, last + 1, ()))
        found.append(words.maps[i, :, start : start + ROWS])
    return torch.stack(found).float().contiguous(memory_format=torch.channels_last)


def train(words: Pictures, epochs: int, seed: int) -> Reader:
    """A reader trained on words."""
    torch.manual_seed(seed)
    reader = Reader(words.maps.shape[1], WIDTH)
    targets = [letters_of(row["answer"]) for row in words.rows]
    columns = torch.stack([in_columns(row, words.maps.shape[-1]) for row in words.rows])
    per_epoch = len(words.rows) // BATCH
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.15)
    start, seen = time.monotonic(), []
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(words.rows))
        own = order[step % per_epoch * BATCH :][:BATCH]
        logits = reader.letters(reader.columns(window(words, own.tolist())).transpose(1, 2))
        weight = BOXES * max(0.0, 1 - 2 * step / steps)
        loss, by_boxes = loss_of(logits, [targets[i] for i in own.tolist()], columns[own], weight)
        optimizer.zero_grad()
        (loss + by_boxes).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        seen.append(loss.item())
        if (step + 1) % 125 == 0:
            spent = time.monotonic() - start
            print(f"step {step + 1} of {steps}: loss {np.mean(seen[-125:]):.3f}, {spent:.0f} s")
    return reader.eval()


@torch.no_grad()
def highest(reader: Reader, maps: Tensor) -> Tensor:
    """(n, width) the highest that is seen in any column."""
    return torch.cat([reader.columns(part.float()).amax(dim=-1) for part in torch.split(maps, 100)])


def tell_text(reader: Reader, words: Tensor, beside: Tensor) -> None:
    """Solves for what tells maps of words from those without text: a logistic regression."""
    seen = torch.cat([highest(reader, words), highest(reader, beside)])
    is_text = (torch.arange(len(seen)) < len(words)).float()
    mean, std = seen.mean(dim=0), seen.std(dim=0).clamp(min=1e-3)
    weight = torch.zeros(seen.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = (seen - mean) / std @ weight + bias
        loss = F.binary_cross_entropy_with_logits(logits, is_text) + RIDGE * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        reader.text.weight.copy_(weight / std)
        reader.text.bias.copy_(bias - (weight * mean / std).sum())


@torch.no_grad()
def measure(reader: Reader, words: Pictures) -> dict[str, float]:
    """Exact match and character error rate, with case and without, and text that is seen."""
    said, shown = [], 0
    for part in torch.split(words.maps, 100):
        logits, text = reader(part.float())
        said += as_text(likeliest(logits))
        shown += int((text.sigmoid() > SURE).sum())
    wanted = [row["answer"] for row in words.rows]
    found = {"text seen": shown / len(wanted)}
    forms: dict[str, Callable[[str], str]] = {"": str, " without case": str.lower}
    for name, form in forms.items():
        pairs = [(form(s), form(w)) for s, w in zip(said, wanted, strict=True)]
        found[f"exact{name}"] = sum(s == w for s, w in pairs) / len(pairs)
        got, expected = zip(*pairs, strict=True)
        found[f"errors{name}"] = character_error_rate(got, expected)
    return found


def pieces_of(model: VisionLanguageModel) -> dict[str, int]:
    """What each word piece of the language model's byte-pair vocabulary spells."""
    vocabulary = model.language.tokenizer.get_vocab()
    return {piece.replace("Ġ", " "): token for piece, token in vocabulary.items()}


def main() -> None:
    """Trains, says how well held-out words are read, and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True, help="a model whose names are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--limit", type=int, help="only the first words, for a learning curve")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = im.compose(VISION, LANGUAGE, replace(NAMES, reader=WIDTH), FUSION, device="cpu")
    load_strip(model, options.init, partly=True)
    connector = model.connector
    assert isinstance(connector, NamesConnector)
    assert connector.reader is not None
    words = read(options.data, model, records_of(options.data, "train-printed")[: options.limit])
    dev = read(options.data, model, records_of(options.data, "dev-printed"))
    beside = read(options.data, model, others(options.data, np.random.default_rng(options.seed)))
    reader = train(words, options.epochs, options.seed)
    cut = len(beside.rows) * 9 // 10
    tell_text(reader, words.maps[:cut], beside.maps[:cut])
    with torch.no_grad():
        shown = reader.text(highest(reader, beside.maps[cut:])).sigmoid() > SURE
    told = measure(reader, dev) | {"text seen where there is none": float(shown.float().mean())}
    print(json.dumps({name: round(share, 4) for name, share in told.items()}))
    if options.out is not None:
        connector.reader.load_state_dict(reader.state_dict())
        connector.spelling.set(pieces_of(model))
        im.save(model, options.out)


if __name__ == "__main__":
    main()
