"""Masks of tokens some of which see what stands behind them, place by place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import isthmus as im
from isthmus.model.reading import CAUSAL, Reading, mask_of

PLAIN = SimpleNamespace()
SLIDES = SimpleNamespace(layer_types=["sliding_attention", "full_attention"], sliding_window=2)


def seen(mask: Tensor) -> list[str]:
    """Who sees whom, a row of 1s and 0s for each token of the first row."""
    return ["".join(str(int(v == 0)) for v in row) for row in mask[0, 0]]


def mask(blocks: list[int], padding: int = 0, config: object = PLAIN, **more: object) -> object:
    own = torch.tensor([blocks])
    there = torch.ones(1, len(blocks), dtype=torch.long)
    there[:, :padding] = 0
    return mask_of(own, there, config, torch.float32, **more)  # type: ignore[arg-type]


def test_an_ordinary_model_keeps_its_own_mask() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear())
    batch = model.prepare(["<image>a", "b"], [[torch.zeros(3, 32, 32)], []])
    assert model.language.reading is CAUSAL
    assert model.mask(batch) is batch.attention_mask


def test_an_image_sees_itself_and_no_other() -> None:
    found = mask([-1, 0, 0, 1, 1, -1])
    assert isinstance(found, Tensor)
    assert seen(found) == ["100000", "111000", "111000", "111110", "111110", "111111"]


def test_nobody_sees_padding() -> None:
    found = mask([0, 0, 0], padding=1)
    assert isinstance(found, Tensor)
    assert seen(found)[1:] == ["011", "011"]


def test_windows_bind_images_and_not_prompts() -> None:
    image = mask([0, 0, 0, -1], config=SLIDES)
    prompt = mask([0, 0, 0, -1], config=SLIDES, far=True)
    assert isinstance(image, dict)
    assert isinstance(prompt, dict)
    assert seen(image["full_attention"]) == ["1110", "1110", "1110", "1111"]
    assert seen(image["sliding_attention"]) == ["1110", "1110", "0110", "0011"]
    assert seen(prompt["sliding_attention"]) == ["1110", "1110", "1110", "0011"]


def test_samples_of_one_row_do_not_see_each_other() -> None:
    found = mask([0, 0, 0, 0], samples=torch.tensor([[0, 1, 0, 1]]))
    assert isinstance(found, Tensor)
    assert seen(found) == ["1100", "1100", "0011", "0011"]


def test_what_came_before_is_seen_by_all() -> None:
    whole = torch.ones(1, 5, dtype=torch.long)
    found = mask_of(torch.tensor([[0, 0, -1]]), whole, PLAIN, torch.float32)
    assert isinstance(found, Tensor)
    assert seen(found) == ["11110", "11110", "11111"]


@pytest.mark.parametrize(("sees", "shares"), [("none", True), ("image", True), ("prompt", False)])
def test_beginnings_are_shared_unless_they_see_the_end(sees: str, shares: bool) -> None:
    assert Reading(sees).shares is shares  # type: ignore[arg-type]
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert (Reading(sees).blocks(nothing) is None) is shares  # type: ignore[arg-type]
