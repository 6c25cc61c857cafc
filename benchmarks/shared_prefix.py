"""Many queries behind the same demonstrations, beside prefilling each query afresh.

    python benchmarks/shared_prefix.py [--quick] [--threads 2] [--queries 500] [--shots 32]

The shipped default answers questions about one image each, behind the same 32 demonstrations with
an image each, greedily with up to 4 tokens. "ours" is the engine, from images to texts, with
nothing known at the start. "afresh" encodes all 33 images and computes the whole prompt for each
query; "images known" computes the whole prompt, but is given every image's visual tokens. The
slow ways are timed on a sample of the queries, in turn. Asserted: equal tokens.

    ratio shared_prefix               ours over afresh, queries a second
    ratio shared_prefix_no_encoding   ours over images known
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from PIL import Image

import isthmus as im
from isthmus.generation.engine import Engine

NEW_TOKENS = 4


def image(number: int) -> Image.Image:
    """An image of its own, of the size of a small photograph."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


def prompts(queries: int, shots: int) -> list[im.Prompt]:
    """Queries behind the same demonstrations."""
    start = "".join(
        f"<image>Question: What is in the picture? Answer: thing {i}<|endofchunk|>"
        for i in range(shots)
    )
    shown = tuple(image(i) for i in range(shots))
    question = "<image>Question: What is in the picture? Answer:"
    return [
        im.Prompt(start + question, (*shown, image(1000 + i)), shared=len(start))
        for i in range(queries)
    ]


def main() -> None:
    """Prints a table and two ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 queries, 8 demonstrations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--shots", type=int, default=32)
    parser.add_argument("--sample", type=int, default=15, help="queries that the slow ways answer")
    options = parser.parse_args()
    if options.quick:
        options.queries, options.shots, options.sample = 16, 8, 3
    torch.set_num_threads(options.threads)
    model = im.load("tiny")
    asked = prompts(options.queries, options.shots)
    sample = asked[:: max(1, len(asked) // options.sample)][: options.sample]

    def afresh(prompt: im.Prompt) -> list[int]:
        batch = model.prepare([prompt.text], [list(prompt.images)])
        row: list[int] = im.generate(model, batch, max_new_tokens=NEW_TOKENS)[0].tolist()
        return row

    @torch.inference_mode()
    def known(prompt: im.Prompt, visual: torch.Tensor) -> float:
        batch = model.prepare([prompt.text], [list(prompt.images)])
        given = im.Batch(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, visual=visual
        )
        started = time.perf_counter()
        im.generate(model, given, max_new_tokens=NEW_TOKENS)
        return time.perf_counter() - started

    afresh(asked[0])  # warms up
    engine = Engine(model)
    started = time.perf_counter()
    answered = engine.generate(asked, max_new_tokens=NEW_TOKENS)
    results = {id(p): r for p, r in zip(asked, answered, strict=True)}
    ours = (time.perf_counter() - started) / len(asked)
    slow: dict[str, list[float]] = {"afresh": [], "images known": []}
    for prompt in sample:
        started = time.perf_counter()
        expected = afresh(prompt)
        slow["afresh"].append(time.perf_counter() - started)
        assert list(results[id(prompt)].completions[0].ids) == expected, "the answers differ"
        with torch.inference_mode():
            pixels = torch.stack([model.vision.preprocess(p) for p in prompt.images])
            visual = model.connector(model.encode_pixels(pixels))
        slow["images known"].append(known(prompt, visual))
    tokens = results[id(asked[0])].prompt_tokens
    print(
        f"{len(asked)} queries, {options.shots} demonstrations, {tokens} tokens a prompt; the slow "
        f"ways on {len(sample)} of them"
    )
    print(f"{'way':<16}{'ms a query':>12}{'min':>10}{'max':>10}")
    print(f"{'ours':<16}{1e3 * ours:>12.1f}")
    for name, times in slow.items():
        print(
            f"{name:<16}{1e3 * statistics.median(times):>12.1f}{1e3 * min(times):>10.1f}"
            f"{1e3 * max(times):>10.1f}"
        )
    found = engine.statistics
    print(
        f"ours: {found.prefill_tokens} prompt tokens computed, {found.cached_tokens} found; "
        f"{found.images_encoded} images encoded; {found.bytes / 1e6:.0f} MB kept"
    )
    one = [statistics.median(slow[name]) / ours for name in slow]
    print(f"ratio shared_prefix {one[0]:.2f}")
    print(f"ratio shared_prefix_no_encoding {one[1]:.2f}")


if __name__ == "__main__":
    main()
