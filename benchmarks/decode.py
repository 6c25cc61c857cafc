"""Decoding with images in context, beside the bare language model and beside OpenFlamingo.

    python benchmarks/decode.py [--quick] [--threads 2] [--tokens 32]

All three decode the same number of tokens greedily with the same SmolLM2-135M weights in fp32.
Ours and OpenFlamingo's have the same random gated blocks before every 4th layer (8 heads of 64,
feed-forward 4x, gates open), 64 visual tokens of width 1024 an image, and the same prompt with 1,
8 or 32 images in it. Visual tokens are given to both, so no encoder is timed. The three take
turns. The first ratio is of the shipped default, with its own adapters and one image.

    ratio decode             the shipped default with an image over the bare model's `generate`
    ratio openflamingo_N     ours over OpenFlamingo's with N images in context

The floor is reading all weights once per token at this machine's reading speed. Without
open-flamingo 2.0.1 (`pip install --no-deps open-flamingo==2.0.1 einops einops-exts`) its part is
left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import openflamingo
import torch
from PIL import Image
from torch import Tensor, nn

import isthmus as im
from isthmus.model.backbones.feature_shape import FeatureShape

VISUAL_WIDTH, VISUAL_TOKENS, EVERY, GATE = 1024, 64, 4, 0.5


class Given(nn.Module):
    """A connector that hands on visual tokens that were made before."""

    num_tokens, width = VISUAL_TOKENS, VISUAL_WIDTH

    def forward(self, features: Tensor) -> Tensor:
        """The features as they are."""
        return features


def ours() -> im.VisionLanguageModel:
    """SmolLM2 with our gated blocks, gates open."""
    encoder = im.load_vision("tiny-vit")
    encoder.shape = FeatureShape(VISUAL_WIDTH, VISUAL_TOKENS, None)
    fusion = im.CrossAttention(every=EVERY, offset=1, gate=GATE, visual_width=VISUAL_WIDTH)
    return im.compose(encoder, "asset:smollm2-135m-instruct", Given(), fusion)


def decoding_time(generate: Callable[[int], object], tokens: int) -> float:
    """Seconds for `tokens` decoded tokens, without the prompt's prefill."""
    started = time.perf_counter()
    generate(1)
    middle = time.perf_counter()
    generate(1 + tokens)
    return (time.perf_counter() - middle) - (middle - started)


@torch.inference_mode()
def compare(
    model: im.VisionLanguageModel, other: Any, images: int, tokens: int, repeats: int
) -> dict[str, list[float]]:
    """Tokens per second of each of the three, in turn, repeated; `other` None is left out."""
    prompt = "".join(f"<image>Output: picture number {i}.<|endofchunk|>" for i in range(images))
    ids = torch.tensor([model.encode_text(prompt + "Output:", images)])
    mask = torch.ones_like(ids)
    visual = torch.randn(images, VISUAL_TOKENS, VISUAL_WIDTH)
    batch = im.Batch(input_ids=ids, attention_mask=mask, features=visual)
    plain = ids.masked_fill(ids >= model.special_tokens.image_id, 1)

    def our_way(n: int) -> object:
        return im.generate(model, batch, max_new_tokens=n, min_new_tokens=n)

    def bare(n: int) -> object:
        return model.language.model.generate(
            input_ids=plain,
            attention_mask=mask,
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=model.pad_id,
        )

    def their_way(n: int) -> object:
        openflamingo.show(other, visual)
        out = other.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=model.pad_id,
        )
        other.clear_conditioned_layers()
        return out

    ways = {"ours": our_way, "bare": bare}
    if other is not None:
        ways["openflamingo"] = their_way
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            speeds[name].append(tokens / decoding_time(way, tokens))
    return speeds


@torch.inference_mode()
def shipped(tokens: int, repeats: int) -> list[float]:
    """Speed of the shipped default with an image, over the bare model's on as long a prompt."""
    model = im.load("tiny")
    image = Image.new("RGB", (260, 260), (200, 30, 30))
    batch = model.prepare(["<image>Question: What is in the picture? Answer:"], [[image]])
    pixels = batch.pixels
    assert pixels is not None
    batch = im.Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        features=model.vision(pixels),
    )
    plain = batch.input_ids.masked_fill(batch.input_ids >= model.special_tokens.image_id, 1)

    def ours(n: int) -> object:
        return im.generate(model, batch, max_new_tokens=n, min_new_tokens=n)

    def bare(n: int) -> object:
        return model.language.model.generate(
            input_ids=plain,
            attention_mask=batch.attention_mask,
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=model.pad_id,
        )

    for way in (ours, bare):  # int8 is packed at the first call
        way(1)
    ratios = []
    for _ in range(repeats):
        mine, other = (decoding_time(way, tokens) for way in (ours, bare))
        ratios.append(other / mine)
    return ratios


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 8 images, 3 turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    repeats, tokens = (3, 8) if options.quick else (7, options.tokens)
    model = ours()
    other: Any = None
    if openflamingo.is_installed():
        other = openflamingo.model_with_blocks(model, every=EVERY, width=VISUAL_WIDTH, gate=GATE)
    ratios = {"decode": shipped(tokens, repeats)}
    print(f"{'images':<10}{'who':<14}{'median tokens/s':>16}{'min':>8}{'max':>8}")
    for images in (1, 8) if options.quick else (1, 8, 32):
        speeds = compare(model, other, images, tokens, repeats)
        for name, values in speeds.items():
            median = statistics.median(values)
            low, high = min(values), max(values)
            print(f"{images:<10}{name:<14}{median:>16.1f}{low:>8.1f}{high:>8.1f}", flush=True)
        if other is not None:
            of_other = [a / b for a, b in zip(speeds["ours"], speeds["openflamingo"], strict=True)]
            ratios[f"openflamingo_{images}"] = of_other
    size = sum(p.numel() for p in model.language.parameters()) * 4
    size += sum(p.numel() for b in model.fusion.blocks.values() for p in b.parameters()) * 4
    big = torch.randn(64 * 1024 * 1024)
    reads = []
    for _ in range(5):  # the first one also waits for memory to be mapped
        started = time.perf_counter()
        big.sum()
        reads.append(time.perf_counter() - started)
    bandwidth = big.numel() * 4 / min(reads)
    print(
        f"floor {bandwidth / size:.1f} tokens/s: {size / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s"
    )
    for name, values in ratios.items():
        low, high = min(values), max(values)
        print(f"# {name}: {low:.2f} to {high:.2f} over {repeats} turns")
        print(f"ratio {name} {statistics.median(values):.2f}")


if __name__ == "__main__":
    main()
