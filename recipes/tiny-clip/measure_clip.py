"""Measures a dual encoder on images that were never trained on.

    python recipes/tiny-clip/measure_clip.py --model tiny-clip --data DATA [--out results.json]

Zero-shot: an image's label is chosen among all names of its test; it is right if it is the
image's name or a listed synonym. Every test with four sets of templates. Digits, the lecture's
example of what the internet has no images of, and Grocery's coarse names: zero-shot, and then
with 1, 4 and 16 labelled images of each (digits that are then not measured, Grocery's training
photographs), by the remedies of `ZeroShotClassifier.fit` (CoOp for digits alone, since it is
slow), over three draws. Intervals are Wilson's at 95%; the baseline always gives the test's most
frequent name.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode import records_of
from PIL import Image
from torch import Tensor

import isthmus as im
from isthmus.classification.few_shot import Method
from isthmus.evaluation.metrics import wilson
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder

TESTS = {
    "twemoji-861": "test-twemoji",
    "fxemoji": "test-fxemoji",
    "tuxpaint-photos": "test-tuxpaint-photos",
    "gcompris-photos": "test-gcompris-photos",
    "grocery-43": "test-grocery-val",
    "grocery-81": "test-grocery-val",
}
SHOPS = "grocery-43"
TEMPLATES = ("none", "one", "imagenet-7", "imagenet-80")
METHODS: tuple[Method, ...] = ("tip-adapter", "tip-adapter-f", "ncm", "linear", "coop")
SHOTS = (1, 4, 16)
DRAWS = 3
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCIKIT_LEARN = "1.9.1"


def zero_shot(
    model: DualEncoder, features: Tensor, right: Sequence[set[str]], labels: list[str]
) -> list[dict[str, Any]]:
    """Accuracy with each set of templates."""
    found = []
    for templates in TEMPLATES:
        classifier = im.ZeroShotClassifier(model, labels, templates=templates, cache=False)
        top = [[label for label, _ in row] for row in classifier.top(features, k=5)]
        first = sum(row[0] in names for row, names in zip(top, right, strict=True))
        five = sum(bool(names & set(row)) for row, names in zip(top, right, strict=True))
        n = len(right)
        told = {"templates": templates, "top1": first / n, "interval": list(wilson(first, n))}
        found.append({**told, "top5": five / n})
    return found


def measure(model: DualEncoder, test: str, root: Path) -> dict[str, Any]:
    """One test."""
    rows = records_of(root, TESTS[test])
    labels = {row["name"] for row in rows}
    if test.startswith("grocery"):
        key = "name" if test.endswith("43") else "fine"
        rows = [{**row, "name": row[key], "names": [row[key]]} for row in rows]
        labels = {row[key] for row in records_of(root, "train-grocery")}
    features = model.encode_images([root / row["image"] for row in rows])
    right = [{row["name"], *row["names"]} for row in rows]
    majority = Counter(row["name"] for row in rows).most_common(1)[0][1] / len(rows)
    told = {"test": test, "n": len(rows), "labels": len(labels), "majority": majority}
    told |= {"zero_shot": zero_shot(model, features, right, sorted(labels))}
    if test == SHOPS:
        shown = records_of(root, "train-grocery")
        pool = model.encode_images([root / row["image"] for row in shown])
        both = (pool, [row["name"] for row in shown]), (features, [row["name"] for row in rows])
        told |= {"few_shot": few_shot(model, sorted(labels), "one", METHODS[:-1], *both)}
    return told


def digits() -> tuple[list[Image.Image], list[str]]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, dark on light, from its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        subprocess.run([*pip, f"scikit-learn=={SCIKIT_LEARN}"], cwd=folder, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            packed = file.read("sklearn/datasets/data/digits.csv.gz")
    images, labels = [], []
    for row in csv.reader(gzip.decompress(packed).decode().splitlines()):
        numbers = np.array(row, dtype=float)
        dark = (255 - numbers[:64].reshape(8, 8) * (255 / 16)).astype(np.uint8)
        large = Image.fromarray(dark).resize((128, 128), Image.Resampling.BICUBIC)
        images.append(large.convert("RGB"))
        labels.append(DIGITS[int(numbers[64])])
    return images, labels


Shown = tuple[Tensor, Sequence[str]]
"""Features of images, and their labels."""


def few_shot(
    model: DualEncoder,
    labels: list[str],
    templates: str,
    methods: Sequence[Method],
    pool: Shown,
    test: Shown | None = None,
) -> list[dict[str, Any]]:
    """Accuracy after seeing some of `pool`, by each method; on its rest if there is no test."""
    features, names = pool
    found = []
    for shots in SHOTS:
        for method in methods:
            shares = []
            for draw in range(DRAWS):
                rng = np.random.default_rng(draw)
                each = [[i for i, name in enumerate(names) if name == label] for label in labels]
                shown = np.concatenate([rng.permutation(own)[:shots] for own in each])
                rest = np.setdiff1d(np.arange(len(names)), shown)
                torch.manual_seed(draw)
                fitted = im.ZeroShotClassifier(model, labels, templates=templates, cache=False)
                fitted.fit(features[shown], [names[i] for i in shown], method=method)
                images, right = test or (features[rest], [names[i] for i in rest])
                shares.append(fitted.score(images, right))
            told = {"shots": shots, "method": method, "mean": float(np.mean(shares))}
            found.append({**told, "least": min(shares), "most": max(shares)})
            print(f"{shots} each, {method:<14}{np.mean(shares):6.1%}", flush=True)
    return found


def measure_digits(model: DualEncoder) -> dict[str, Any]:
    """Zero-shot and every remedy."""
    images, names = digits()
    features = model.encode_images(images)
    labels = list(DIGITS)
    targets = np.array([labels.index(name) for name in names])
    plain = zero_shot(model, features, [{name} for name in names], labels)
    classifier = im.ZeroShotClassifier(model, labels, templates="digits", cache=False)
    right = int((classifier.predict(features) == np.array(names)).sum())
    n = len(names)
    plain.append({"templates": "digits", "top1": right / n, "interval": list(wilson(right, n))})
    remedies = few_shot(model, labels, "digits", METHODS, (features, names))
    majority = float(np.bincount(targets).max() / n)
    told = {"test": "digits", "n": n, "labels": 10, "majority": majority}
    return {**told, "zero_shot": plain, "few_shot": remedies}


def main() -> None:
    """Prints a table, and writes everything to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tests", nargs="*", default=[*TESTS, "digits"])
    options = parser.parse_args()
    model = load_clip(options.model)
    results = []
    for test in options.tests:
        digital = test == "digits"
        result = measure_digits(model) if digital else measure(model, test, options.data)
        results.append(result)
        told = f"{test:<17}n={result['n']:<6}{result['labels']} labels, "
        told += f"majority {result['majority']:.1%}"
        for row in result["zero_shot"]:
            low, high = row["interval"]
            told += f"\n    {row['templates']:<14}{row['top1']:6.1%} [{low:.1%}, {high:.1%}]"
            told += f"  top 5 {row['top5']:.1%}" if "top5" in row else ""
        print(told, flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
