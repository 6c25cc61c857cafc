"""Choosing 32 shots by RICES, each image encoded once, against encoding anew in every run.

    python benchmarks/rices.py [--quick] [--model tiny] [--support 2000] [--queries 200] [--runs 3]
                               [--threads 2]

Both sides choose the same shots with the same encoder, for the same queries over the same support
set, in several runs, such as other numbers of shots or other seeds. One keeps vectors in a folder.
The other encodes support set and queries in each run, as OpenFlamingo's evaluation does without
features computed beforehand, though here at least in batches. Images are JPEG files, painted
here, and opening them belongs to encoding them.

    ratio rices_images     images encoded in all runs
    ratio rices            seconds of all runs
    ratio rices_again      seconds of a run after the first, medians
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import isthmus as im
from isthmus.demonstrations.embed import ImageEmbedder
from isthmus.demonstrations.retrieve import Nearest
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.prompts.prompt import Example

SHOTS = 32


def paint(folder: Path, count: int) -> list[Example]:
    """JPEG files of 500 x 400 pixels, cut out of one of the examples, no two alike."""
    source = im.open_image(Path(__file__).parent.parent / "examples" / "cat.jpg")
    source = source.resize((800, 700))
    places = np.random.default_rng(0).choice(300 * 300, count, replace=False)
    examples = []
    for i, place in enumerate(places):
        x, y = (int(v) for v in divmod(place, 300))
        source.crop((x, y, x + 500, y + 400)).save(folder / f"{i}.jpg", quality=90)
        examples.append(Example(folder / f"{i}.jpg", "", f"{i}"))
    return examples


def choose(
    encoder: VisionEncoder, folder: Path | None, support: list[Example], queries: list[Example]
) -> tuple[list[list[Example]], int, float]:
    """The shots of each query, images encoded and seconds."""
    started = time.perf_counter()
    embed = ImageEmbedder(encoder, folder)
    near = Nearest(support, embed)
    embed(queries)
    shots = [near.select(query, SHOTS) for query in queries]
    return shots, embed.encoded, time.perf_counter() - started


def main() -> None:
    """Prints the table and the `ratio` lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--support", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, asked = (64, 8) if options.quick else (options.support, options.queries)
    encoder = im.load(options.model).vision

    times: dict[str, list[float]] = {"once": [], "anew": []}
    encoded = {"once": 0, "anew": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        painted = paint(folder, count + asked)
        support, queries = painted[:count], painted[count:]
        choose(encoder, None, support[:SHOTS], queries[:1])  # traces the encoder
        for run in range(options.runs):
            found = {}
            for side, cache in (("once", folder / "cache"), ("anew", None)):
                found[side], images, seconds = choose(encoder, cache, support, queries)
                encoded[side] += images
                times[side].append(seconds)
                print(f"run {run + 1}, {side}: {images} images encoded, {seconds:.2f} s")
            assert found["once"] == found["anew"], "both sides must choose the same shots"

    print(f"{count} support images, {asked} queries, {SHOTS} shots, {options.runs} runs")
    for side, taken in times.items():
        print(f"{side}: {encoded[side]} images encoded, {sum(taken):.1f} s")
    print(f"ratio rices_images {encoded['anew'] / encoded['once']:.2f}")
    print(f"ratio rices {sum(times['anew']) / sum(times['once']):.2f}")
    if options.runs > 1:
        again = {side: statistics.median(taken[1:]) for side, taken in times.items()}
        print(f"ratio rices_again {again['anew'] / again['once']:.2f}")


if __name__ == "__main__":
    main()
