"""Training the shipped default with cached features, against features computed in each step.

    python benchmarks/feature_cache.py [--quick] [--model tiny] [--threads 2] [--precision bf16]

A step of the recipe (`recipes/tiny/tiny.toml`), at its batch size, forward, backward and AdamW, the
same batches on both sides, taking turns. Images are JPEG files, painted here. Opening and
preprocessing them belongs to the side without a cache, reading rows to the side with one.

    ratio feature_cache            the whole training, the steps of all stages, from the medians of
                                   a step, filling the cache included
    ratio feature_cache_step       a step, most of which is the language model
    ratio feature_lookup           the image side of a step alone

Samples here have an image each, and a short answer. The recipe's are conversations and episodes as
well, which are longer, so that more of its steps is the language model. `--quick` takes small
batches in fp32, which is fast on any CPU, unless another precision is asked for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.media.file_ref import FileRef
from isthmus.model.batch import IGNORED, pad
from isthmus.model.features import PatchFeatures
from isthmus.prompts.prompt import END_TAG
from isthmus.prompts.templates import template_named

QUESTION = "What is in the picture?"
STEPS, SAMPLES, IMAGES = 1_200 + 240 + 600, 8, 67_000
"""The recipe's steps, samples a step, and training images."""
FILLED = 384
"""Images that the time of filling the cache is measured on."""
ANSWERS = ("a cat", "a red bell pepper", "a rocket", "a cup of coffee on a saucer")


def paint(folder: Path, count: int) -> list[FileRef]:
    """JPEG files of 500 x 400 pixels, cut out of one of the examples."""
    source = im.open_image(Path(__file__).parent.parent / "examples" / "cat.jpg")
    source = source.resize((800, 700))
    random = np.random.default_rng(0)
    images = []
    for i in range(count):
        x, y = (int(v) for v in random.integers(0, 300, 2))
        source.crop((x, y, x + 500, y + 400)).save(folder / f"{i}.jpg", quality=90)
        images.append(FileRef(folder / f"{i}.jpg"))
    return images


def texts(model: im.VisionLanguageModel, batch: int) -> im.Batch:
    """Prompts with their answers, labels on the answers, without images."""
    prompt = template_named(model.config.template)(
        [], im.Example(Image.new("RGB", (1, 1)), QUESTION)
    )
    rows, lengths = [], []
    for i in range(batch):
        answer = model.special_tokens.encode(f" {ANSWERS[i % len(ANSWERS)]}{END_TAG}")
        rows.append([*model.encode_text(prompt.text, images=1), *answer])
        lengths.append(len(answer))
    ids, mask = pad(rows, model.pad_id, "left")
    labels = torch.full_like(ids, IGNORED)
    for i, length in enumerate(lengths):
        labels[i, -length:] = ids[i, -length:]
    return im.Batch(input_ids=ids, attention_mask=mask, labels=labels)


def turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's runs, one after the other, after one each that warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-1, repeats):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            if i >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Prints the table and the `ratio` lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 1 if options.quick else 7
    samples, filled = (2, 8) if options.quick else (SAMPLES, FILLED)

    model = im.load(options.model).train()
    half = (options.precision or ("fp32" if options.quick else "bf16")) == "bf16"
    if half:  # as the training loop does it on a CPU
        model.language.model.set_attn_implementation("eager")
        for parameter in model.language.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    trained = list(model.trained_parameters().values())
    # Rates of 0: what is timed is the same in every step
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    text = texts(model, samples)

    with tempfile.TemporaryDirectory() as folder:
        images = paint(Path(folder), filled)
        cache = FeatureCache(Path(folder) / "cache", PatchFeatures(model.vision))
        started = time.perf_counter()
        cache.fill(images, quiet=True)
        filling = len(images) / (time.perf_counter() - started)

        def look_up() -> torch.Tensor:
            return cache.get(images[:samples])

        def open_() -> torch.Tensor:
            opened = [im.open_image(p.path) for p in images[:samples]]
            return torch.stack([model.vision.preprocess(image) for image in opened])

        def step(features: torch.Tensor | None, pixels: torch.Tensor | None) -> None:
            batch = im.Batch(
                input_ids=text.input_ids,
                attention_mask=text.attention_mask,
                pixels=pixels,
                features=features,
                labels=text.labels,
            )
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(batch).loss
            assert loss is not None
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

        sides: dict[str, Callable[[], object]] = {
            "step, cached": lambda: step(look_up(), None),
            "step, computed": lambda: step(None, open_()),
            "images, cached": look_up,
            "images, computed": lambda: model.vision(open_()),
        }
        times = turns(sides, repeats)

    print(f"{'part':<22}{'median ms':>10}{'min':>9}{'max':>9}{'samples/s':>11}")
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, t in times.items():
        low, high = min(t) * 1e3, max(t) * 1e3
        rate = samples / medians[name]
        print(f"{name:<22}{medians[name] * 1e3:>10.1f}{low:>9.1f}{high:>9.1f}{rate:>11.1f}")
    print(f"filling the cache: {filling:.1f} images/s")
    whole = {
        side: STEPS * medians[f"step, {side}"] * SAMPLES / samples
        for side in ("cached", "computed")
    }
    whole["cached"] += IMAGES / filling
    print(f"whole training: {whole['cached']:.0f} s cached, {whole['computed']:.0f} s computed")
    for part, name in (("images", "feature_lookup"), ("step", "feature_cache_step")):
        ratio = medians[f"{part}, computed"] / medians[f"{part}, cached"]
        print(f"ratio {name} {ratio:.2f}")
    print(f"ratio feature_cache {whole['computed'] / whole['cached']:.2f}")


if __name__ == "__main__":
    main()
