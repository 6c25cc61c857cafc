"""Ways of cutting images: at the sizes of released models, how many tokens an image takes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image

from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.model.media.any_resolution import AnyResolutionCut
from isthmus.model.media.grid_tiles import GridCut
from isthmus.model.media.plain_tiles import PlainCut

CHANCE = random.Random(0)
SIZES = [(CHANCE.randint(8, 3000), CHANCE.randint(8, 3000)) for _ in range(300)]
"""Width and height."""


def words() -> Any:
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    return made


def next_cut() -> tuple[AnyResolutionCut, Any]:
    """LLaVA-1.6: CLIP at 336."""
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    images = LlavaNextImageProcessor(**size)
    whole = LlavaNextProcessor(
        images, words(), 14, "default", None, "<image>", num_additional_image_tokens=1
    )
    return AnyResolutionCut(images, (24, 24), 8), whole


def onevision_cut() -> tuple[AnyResolutionCut, Any]:
    """LLaVA-OneVision: SigLIP at 384, whose patches of 14 leave a border."""
    images = LlavaOnevisionImageProcessor()
    videos, cap = LlavaOnevisionVideoProcessor(), "anyres_max_9"
    whole = LlavaOnevisionProcessor(images, words(), videos, 729, "full", vision_aspect_ratio=cap)
    return AnyResolutionCut(images, (27, 27), 8, cap=9), whole


@pytest.mark.parametrize("made", [next_cut, onevision_cut])
def test_any_resolution_takes_as_many_tokens_as_its_processor_counts(made: Any) -> None:
    cut, whole = made()
    counted = whole._get_num_multimodal_tokens([(h, w) for w, h in SIZES])["num_image_tokens"]
    told = [cut._told(size) for size in SIZES]
    assert [cut.layout(one).holes for one in told] == counted
    assert len({*counted}) > 50
    largest = cut.layout(cut.largest()).holes
    assert max(counted) <= largest <= 1.1 * max(counted)


@pytest.mark.parametrize("made", [next_cut, onevision_cut])
def test_borders_are_taken_off_as_the_class_does(made: Any) -> None:
    cut, _ = made()
    tall, wide = cut.grid
    for width, height in SIZES[:40]:
        told = cut._told((width, height))
        rows, columns = told[:2]
        tokens = torch.randn(2, 1 + rows * columns, tall * wide, 8)
        got = cut.ordered(tokens, told)
        assert got.shape[1] == cut.layout(told).holes
        if cut._kept(*told[2:]) != told[2:]:
            continue
        for own, expected in zip(got, tokens, strict=True):
            large = expected[1:].view(rows, columns, tall, wide, 8).permute(4, 0, 2, 1, 3)
            large = unpad_image(large.flatten(1, 2).flatten(2, 3), (height, width))
            ends = cut.newline[:, None, None].expand(-1, large.shape[1], 1)
            large = torch.cat([large, ends], dim=2).flatten(1).T
            assert torch.equal(own, torch.cat([expected[0], large]))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("most", [None, 1, 2, 3, 5, 8, 12, 16])
def test_a_grid_keeps_its_bound_at_every_aspect(most: int | None) -> None:
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 16})
    tokenizer = words()
    cut = GridCut(images, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2, most)
    largest = len(cut.layout(cut.largest()))
    tiles = []
    for size in SIZES[:60]:
        pixels, told = cut.cut(noise(max(1, size[0] // 10), max(1, size[1] // 10)))
        assert pixels.shape == (told[0] * told[1] + 1, 3, 16, 16)
        assert told[0] * told[1] <= (most or 16)
        layout = cut.layout(told)
        assert layout.holes == 2 * len(pixels)
        assert len(layout) <= largest
        tiles.append(told[0] * told[1])
    reached = {None: 16, 1: 0, 2: 2, 3: 3, 5: 4, 8: 8, 12: 12, 16: 16}
    assert max(tiles) == reached[most]  # no grid has five tiles


def test_a_row_that_rounding_adds_counts() -> None:
    """Sides are made even, and a row of tiles of odd length becomes two."""
    images = Idefics3ImageProcessor(size={"longest_edge": 60}, max_image_size={"longest_edge": 15})
    tokenizer = words()
    told = [
        GridCut(images, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2, most).cut(
            noise(60, 15)
        )[1]
        for most in (None, 4)
    ]
    assert told == [(2, 4), (1, 3)]


def test_a_processor_that_does_not_split_leaves_images_whole() -> None:
    images = Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    tokenizer = words()
    cut = GridCut(images, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2, None)
    assert cut.cut(noise(40, 30))[1] == cut.largest() == cut.usual() == (0, 0)


@pytest.mark.parametrize("most", [None, 1, 2, 5, 12, 40])
def test_plain_tiles_are_as_many_as_the_processor_s(most: int | None) -> None:
    images = GotOcr2ImageProcessor(size={"height": 16, "width": 16})
    cut = PlainCut(images, (1, 2), 3, most)
    bound = min(most or 12, 12)
    for width, height in SIZES[:60]:
        width, height = max(1, width // 10), max(1, height // 10)
        pixels, told = cut.cut(noise(width, height))
        columns, rows = get_optimal_tiled_canvas((height, width), (16, 16), 1, bound)
        tiles = columns * rows
        assert told == (len(pixels),) == (tiles + (tiles > 1),)
        assert told <= cut.largest()
        assert cut.layout(told).ids == (1, *[-1] * (3 * len(pixels)), 2)
