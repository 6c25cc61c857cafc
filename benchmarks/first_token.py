"""From a decoded photograph to the first answer token with the shipped default, part by part.

    python benchmarks/first_token.py [--quick] [--model tiny] [--threads 2] [--dtype float32]
        [--plain]

Parts: preprocessing, vision encoder, connector, prefill (embedding, language model, gated blocks),
and one further decoded token. `total` is `generate` with one new token, from image to token. On a
CPU the weights lie as `isthmus serve` and `isthmus chat` lay them out (`PackedLinears`); with
`--plain` they lie as they were loaded.
The floor is arithmetic and memory traffic at what this machine reaches on plain matrix products
and copies, measured beside it. The aim is the 232 ms that GPT-4o is said to answer in.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import isthmus as im
from isthmus.generation.packed import PackedLinears
from isthmus.prompts.templates import template_named

AIM = 0.232
IMAGE = Path(__file__).parent.parent / "examples" / "cat.jpg"
QUESTION = "What is in the picture?"


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Times of repeated runs, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def machine(repeats: int) -> tuple[float, float]:
    """FLOP/s of a matrix product and bytes/s of reading, in fp32."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = min(seconds(lambda: a @ b, repeats))
    big = torch.randn(64 * 1024 * 1024)
    reading = min(seconds(big.sum, repeats))
    return 2 * 1024**3 / product, big.numel() * 4 / reading


def main() -> None:
    """Prints the table and one `ratio` line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else 30
    model = im.load(options.model, dtype=options.dtype)
    if not options.plain:
        PackedLinears(model, 2 << 30)
    image = im.open_image(IMAGE)
    prompt = template_named(model.config.template)([], im.Example(image, QUESTION)).text

    pixels = model.vision.preprocess(image)[None]
    features = model.vision(pixels)
    batch = model.prepare([prompt], [[image]])

    @torch.inference_mode()
    def connect() -> object:
        return model.connector(features)

    @torch.inference_mode()
    def prefill() -> object:
        return model(
            im.Batch(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, features=features
            ),
            last=1,
        )

    def answer(tokens: int) -> object:
        return im.generate(
            model,
            model.prepare([prompt], [[image]]),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )

    parts = {
        "preprocessing": lambda: model.vision.preprocess(image),
        "vision encoder": lambda: model.vision(pixels),
        "connector": connect,
        "connector + prefill": prefill,
        "first token, total": lambda: answer(1),
        "eight tokens, total": lambda: answer(8),
    }
    print(f"{'part':<22}{'median ms':>10}{'min':>8}{'max':>8}")
    medians = {}
    for name, work in parts.items():
        times = seconds(work, repeats)
        medians[name] = statistics.median(times)
        low, high = min(times) * 1e3, max(times) * 1e3
        print(f"{name:<22}{medians[name] * 1e3:>10.1f}{low:>8.1f}{high:>8.1f}")
    further = (medians["eight tokens, total"] - medians["first token, total"]) / 7
    print(f"{'a further token':<22}{further * 1e3:>10.1f}")

    flops, bandwidth = machine(repeats)
    parameters = sum(p.numel() for p in model.language.parameters())
    length = batch.input_ids.shape[1]
    work_done = 2 * parameters * length + sum(model.summary().flops.values())
    floor = max(work_done / flops, parameters * 4 / bandwidth)
    print(
        f"floor {floor * 1e3:.1f} ms: {work_done / 1e9:.1f} GFLOP at {flops / 1e9:.0f} GFLOP/s, or "
        f"{parameters * 4 / 1e6:.0f} MB of weights at {bandwidth / 1e9:.1f} GB/s"
    )
    print(f"ratio first_token {AIM / medians['first token, total']:.2f}")


if __name__ == "__main__":
    main()
