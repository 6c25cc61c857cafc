"""Positions of tokens, among them images on a grid: those that Transformers' Qwen2-VL computes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.errors import ConfigError
from isthmus.model.layout import HOLE, Layout
from isthmus.model.positions import counted, positions_of

IMAGE, START, END = 9, 10, 11
GRIDS = [(1, 1), (2, 3), (4, 2), (1, 5), (3, 3)]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLModel

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    text |= {"intermediate_size": 8, "num_key_value_heads": 1}
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 1}
    with torch.device("meta"):
        return Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision))


def layout(grid: tuple[int, int]) -> Layout:
    return Layout((START, *(HOLE,) * (grid[0] * grid[1]), END), grid)


def row(chance: random.Random) -> tuple[list[int], list[Layout]]:
    ids: list[int] = []
    layouts = []
    for _ in range(chance.randrange(4)):
        ids += [1] * chance.randrange(4)
        layouts.append(layout(chance.choice(GRIDS)))
        ids += layouts[-1].written(IMAGE)
    return [*ids, *[2] * chance.randrange(1, 4)], layouts


def grids_of(layouts: list[Layout]) -> torch.Tensor | None:
    found = [[1, 2 * own.grid[0], 2 * own.grid[1]] for own in layouts if own.grid is not None]
    return torch.tensor(found) if found else None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(6))
def test_they_are_those_of_qwen2_vl(theirs: Any, side: str, seed: int) -> None:
    chance = random.Random(seed)
    rows = [row(chance) for _ in range(3)]
    ids, mask = padded([ids for ids, _ in rows], side)
    layouts = [own for _, some in rows for own in some]
    found = positions_of(mask, ids == IMAGE, layouts, axes=3)
    expected, delta = theirs.get_rope_index(
        ids, (ids == IMAGE).int(), image_grid_thw=grids_of(layouts), attention_mask=mask
    )
    tokens = found.tokens if found.tokens.ndim == 3 else found.tokens.expand(3, -1, -1)
    real = mask.bool().expand(3, -1, -1)
    assert torch.equal(tokens[real], expected[real])
    lengths = mask.sum(dim=1, keepdim=True)
    assert torch.equal(found.behind(lengths), lengths + delta)


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    from isthmus.model.batch import pad

    return pad(rows, 0, side)


@pytest.mark.parametrize("seed", range(4))
def test_what_came_before_counts(seed: int) -> None:
    """Positions behind a prefix are those of the whole."""
    chance = random.Random(seed)
    first, early = row(chance)
    second, late = row(chance)
    ids = torch.tensor([[*first, *second]])
    mask = torch.ones_like(ids)
    whole = positions_of(mask, ids == IMAGE, [*early, *late], axes=3)
    behind = ids[:, len(first) :]
    cut = positions_of(mask, behind == IMAGE, late, axes=3, before=[early])
    expected = whole.tokens[..., len(first) :]
    if cut.tokens.ndim < expected.ndim:
        expected = expected[0]
    assert torch.equal(cut.tokens, expected)
    assert cut.lag_of(0) == whole.lag_of(0)


def test_samples_of_a_row_count_by_themselves() -> None:
    chance = random.Random(8)
    rows = [row(chance) for _ in range(3)]
    ids = torch.tensor([[i for own, _ in rows for i in own]])
    samples = torch.tensor([[n for own, _ in rows for n in range(len(own))]])
    layouts = [own for _, some in rows for own in some]
    assert sum(bool(some) for _, some in rows) > 1
    found = positions_of(torch.ones_like(ids), ids == IMAGE, layouts, axes=3, samples=samples)
    at = 0
    for own, some in rows:
        alone = torch.tensor([own])
        expected = positions_of(torch.ones_like(alone), alone == IMAGE, some, axes=3).tokens
        part = found.tokens[:, 0, at : at + len(own)]
        assert torch.equal(part, expected[:, 0] if expected.ndim == 3 else expected.expand(3, -1))
        at += len(own)


def test_a_model_that_counts_tokens_is_left_alone() -> None:
    ids, layouts = row(random.Random(1))
    mask = torch.ones(1, len(ids), dtype=torch.long)
    is_image = torch.tensor([ids]) == IMAGE
    for axes, own in ((1, layouts), (3, [Layout(one.ids) for one in layouts])):
        found = positions_of(mask, is_image, own, axes=axes)
        assert found.lag is None
        assert torch.equal(found.tokens, counted(mask))
    assert im.load_language("tiny-lm").axes == 1


def test_a_grid_has_its_holes_in_one_run() -> None:
    for ids, grid in (((HOLE,) * 5, (2, 3)), ((HOLE, 1, HOLE), (1, 2)), ((HOLE, -2), (1, 2))):
        with pytest.raises(ConfigError, match="grid"):
            Layout(ids, grid)
