"""Decoding with images in context, beside the bare language model and beside OpenFlamingo.

    python benchmarks/decode.py [--quick] [--threads 2] [--tokens 32]

All three decode the same number of tokens greedily with the same SmolLM2-135M weights in fp32.
Ours and OpenFlamingo's have the same random gated blocks before every 4th layer (8 heads of 64,
feed-forward 4x, gates open), 64 visual tokens of width 1024 an image, and the same prompt with 1,
8 or 32 images in it. Visual tokens are given to both, so no encoder is timed. The three take
turns. The first ratio is of the shipped default, with its own blocks and one image.

    ratio decode             the shipped default with an image over the bare model's `generate`
    ratio openflamingo_N     ours over OpenFlamingo's with N images in context

The floor is reading all weights once per token at this machine's reading speed. open-flamingo 2.0.1
must be installed (`pip install --no-deps open-flamingo==2.0.1 einops einops-exts`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.utils import extend_instance
from PIL import Image
from torch import Tensor, nn

import isthmus as im
from isthmus.assets.registry import fetch_asset
from isthmus.model.backbones.vision import FeatureShape

VISUAL_WIDTH, VISUAL_TOKENS, EVERY = 1024, 64, 4


class CurrentMixin(FlamingoLMMixin):
    """OpenFlamingo's mixin beside a current Transformers, which leaves out a mask of ones."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        """As theirs, with a mask that may be missing."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)


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
    fusion = im.CrossAttention(every=EVERY, offset=1, gate=0.5, visual_width=VISUAL_WIDTH)
    return im.compose(encoder, "asset:smollm2-135m-instruct", Given(), fusion)


def theirs(model: im.VisionLanguageModel) -> nn.Module:
    """The same weights under OpenFlamingo's mixin, its blocks' gates open."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(
        fetch_asset("smollm2-135m-instruct"), dtype=torch.float32
    )
    extend_instance(lm, CurrentMixin)
    lm.set_decoder_layers_attr_name("model.layers")
    lm.resize_token_embeddings(model.special_tokens.image_id + 2)
    lm.init_flamingo(
        media_token_id=model.special_tokens.image_id,
        lang_hidden_size=lm.config.hidden_size,
        vis_hidden_size=VISUAL_WIDTH,
        cross_attn_every_n_layers=EVERY,
        gradient_checkpointing=False,
    )
    for block in lm.gated_cross_attn_layers:
        if block is not None:
            nn.init.constant_(block.attn_gate, 0.5)
            nn.init.constant_(block.ff_gate, 0.5)
    return lm.eval()


def decoding_time(generate: Callable[[int], object], tokens: int) -> float:
    """Seconds for `tokens` decoded tokens, without the prompt's prefill."""
    started = time.perf_counter()
    generate(1)
    middle = time.perf_counter()
    generate(1 + tokens)
    return (time.perf_counter() - middle) - (middle - started)


@torch.inference_mode()
def compare(
    model: im.VisionLanguageModel, other: nn.Module, images: int, tokens: int, repeats: int
) -> dict[str, list[float]]:
    """Tokens per second of each of the three, in turn, repeated."""
    prompt = "".join(f"<image>Output: picture number {i}.<|endofchunk|>" for i in range(images))
    ids = torch.tensor([model.encode_text(prompt + "Output:", images)])
    mask = torch.ones_like(ids)
    visual = torch.randn(images, VISUAL_TOKENS, VISUAL_WIDTH)
    batch = im.Batch(ids, mask, features=visual)
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
        other._use_cached_vision_x = True
        for layer in other._get_decoder_layers():
            layer.condition_vis_x(visual[None])
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

    ways = {"ours": our_way, "bare": bare, "openflamingo": their_way}
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
    batch = im.Batch(batch.input_ids, batch.attention_mask, features=model.vision(pixels))
    plain = batch.input_ids.masked_fill(batch.input_ids >= model.special_tokens.image_id, 1)
    ratios = []
    for _ in range(repeats):
        ours, bare = (
            decoding_time(way, tokens)
            for way in (
                lambda n: im.generate(model, batch, max_new_tokens=n, min_new_tokens=n),
                lambda n: model.language.model.generate(
                    input_ids=plain,
                    attention_mask=batch.attention_mask,
                    max_new_tokens=n,
                    min_new_tokens=n,
                    do_sample=False,
                    pad_token_id=model.pad_id,
                ),
            )
        )
        ratios.append(bare / ours)
    return ratios


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    repeats, tokens = (2, 8) if options.quick else (7, options.tokens)
    model = ours()
    other = theirs(model)
    ratios = {"decode": shipped(tokens, repeats)}
    print(f"{'images':<10}{'who':<14}{'median tokens/s':>16}{'min':>8}{'max':>8}")
    for images in (1, 8, 32):
        speeds = compare(model, other, images, tokens, repeats)
        for name, values in speeds.items():
            median = statistics.median(values)
            low, high = min(values), max(values)
            print(f"{images:<10}{name:<14}{median:>16.1f}{low:>8.1f}{high:>8.1f}", flush=True)
        of_other = [a / b for a, b in zip(speeds["ours"], speeds["openflamingo"], strict=True)]
        ratios[f"openflamingo_{images}"] = of_other
    size = sum(p.numel() for p in model.language.parameters()) * 4
    size += sum(p.numel() for p in model.fusion.parameters()) * 4
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
