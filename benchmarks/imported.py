"""An imported model through our engine, beside Transformers' own `generate` of the same model.

    python benchmarks/imported.py [--quick] [--threads 2] [--model hf:REPO]

The model is a LLaVA. Without `--model` it is made here and needs no network: a CLIP tower of random
weights (12 layers of 384, 196 patches), a random projector and SmolLM2-135M-Instruct, exported as a
repository of Transformers and loaded again by both. Prompts have an image and a question each;
16 tokens, greedy, in batches of 1, 4 and 16; then questions behind 32 fixed demonstrations with an
image each (16 in the quick mode), which our engine computes once. Ours runs in float32, where texts
are asserted to be equal, and in what "auto" takes on this machine. The sides take turns.

    ratio imported_N         ours in "auto" over Transformers, batch N, images included
    ratio imported_N_fp32    ours in float32 over Transformers
    ratio imported_shots     ours over Transformers behind the demonstrations, and _fp32 likewise
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

import isthmus as im

NEW = 16
QUESTION = "<image>Question: What is in picture number {}? Answer:"


def image(number: int) -> Image.Image:
    """An image of its own, of the size of a small photograph."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


def made(folder: Path) -> str:
    """A LLaVA with random sight and SmolLM2's words, as a repository."""
    torch.manual_seed(0)
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=224,
            patch_size=16,
        )
    ).eval()
    square = {"height": 224, "width": 224}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=square)
    vision = im.load_vision(tower, preprocess=images, feature_layer=-2)
    model = im.compose(vision, "asset:smollm2-135m-instruct", im.MLP(depth=2), template="chat")
    im.export(model, folder / "llava")
    return f"hf:{folder / 'llava'}"


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, taken in turn after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(options.model or made(Path(folder)), options.quick)


def compare(name: str, quick: bool) -> None:
    """All measurements of one model."""
    place = name.removeprefix("hf:")
    processor = transformers.AutoProcessor.from_pretrained(place)
    theirs: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        place, dtype=torch.float32
    ).eval()
    ours = {kind: im.load(name, dtype=kind) for kind in ("float32", "auto")}
    ends = ours["float32"].language.end_ids()

    def transformers_says(prompts: list[im.Prompt]) -> list[list[int]]:
        inputs = processor(
            text=[prompt.text for prompt in prompts],
            images=[[*prompt.images] for prompt in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids = theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        return [row.tolist() for row in ids[:, inputs["input_ids"].shape[1] :]]

    def engine_says(kind: str, prompts: list[im.Prompt]) -> list[list[int]]:
        engine = im.Engine(ours[kind], batch_size=len(prompts))  # with nothing known at the start
        found = engine.generate(prompts, max_new_tokens=NEW)
        return [list(each.completions[0].ids) for each in found]

    print(f"{'work':<22}{'way':<22}{'seconds':>9}{'min':>9}{'max':>9}")
    repeats = 2 if quick else 7
    work = {str(n): [im.Prompt(QUESTION.format(i), (image(i),)) for i in range(n)] for n in (1, 4)}
    if not quick:
        work["16"] = [im.Prompt(QUESTION.format(i), (image(i),)) for i in range(16)]
    shots = 16 if quick else 32
    start = "".join(f"{QUESTION.format(i)} thing {i}.\n\n" for i in range(shots))
    shown = tuple(image(100 + i) for i in range(shots))
    work["shots"] = [
        im.Prompt(start + QUESTION.format(shots), (*shown, image(i)), shared=len(start))
        for i in range(4 if quick else 16)
    ]
    for label, prompts in work.items():
        expected = [
            row
            for batch in ([prompts] if label != "shots" else [[prompt] for prompt in prompts])
            for row in transformers_says(batch)
        ]
        for row, own in zip(expected, engine_says("float32", prompts), strict=True):
            assert until(row, ends) == until(own, ends), "the texts differ"
        one = prompts[:1] if label == "shots" else prompts  # of a slow way, a sample
        times = in_turn(
            {
                "Transformers": partial(transformers_says, one),
                "ours, float32": partial(engine_says, "float32", prompts),
                "ours, auto": partial(engine_says, "auto", prompts),
            },
            repeats,
        )
        times["Transformers"] = [t * len(prompts) / len(one) for t in times["Transformers"]]
        for way, seconds in times.items():
            middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
            print(f"{label:<22}{way:<22}{middle:>9.2f}{least:>9.2f}{most:>9.2f}")
        slow = statistics.median(times["Transformers"])
        print(f"ratio imported_{label} {slow / statistics.median(times['ours, auto']):.2f}")
        print(f"ratio imported_{label}_fp32 {slow / statistics.median(times['ours, float32']):.2f}")


def until(ids: list[int], ends: list[int]) -> list[int]:
    """Token ids up to the end of the text."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:first]


if __name__ == "__main__":
    main()
