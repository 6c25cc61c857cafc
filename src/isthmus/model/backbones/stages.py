"""What the stages of a convolutional network of timm see: of a whole image, and of its regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _mean_and_most(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum (B, D) over all places of a map (B, D, h, w)."""
    # with channels last the maximum over both dimensions at once takes 40 times as long
    return grid.mean((2, 3)), grid.amax(2).amax(2)


def timm_stages(model: Any, classes: bool, pixels: Tensor) -> Tensor:
    """What `VisionEncoder.stages` returns, the scores of the classifier behind it if asked for."""
    last, stages = model.forward_intermediates(pixels.contiguous(memory_format=torch.channels_last))
    pooled = [each for stage in stages for each in _mean_and_most(stage)]
    return torch.cat([*pooled, model.forward_head(last)] if classes else pooled, dim=1)


REGIONS = ("whole", "top left", "top right", "bottom left", "bottom right", "middle")
"""Parts of an image that are looked at by themselves, in the order in which they come."""


def part_of(grid: Tensor, region: str) -> Tensor:
    """The part (..., h', w') of a feature map (..., h, w) that shows a region.

    Quadrants share the row and the column in the middle where there is one; the middle leaves out a
    quarter on each side.

    Example:
        >>> part_of(torch.arange(9.0).view(3, 3), "top right").tolist()
        [[1.0, 2.0], [4.0, 5.0]]
    """
    height, width = grid.shape[-2:]
    rows = columns = slice(None)
    if region == "middle":
        rows = slice(height // 4, height - height // 4)
        columns = slice(width // 4, width - width // 4)
    elif region != "whole":
        vertical, horizontal = region.split()
        rows = slice(0, (height + 1) // 2) if vertical == "top" else slice(height // 2, height)
        columns = slice(0, (width + 1) // 2) if horizontal == "left" else slice(width // 2, width)
    return grid[..., rows, columns]


def timm_regions(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The last map; of each region what all stages see and the classifier's scores; all maps."""
    last, stages = model.forward_intermediates(pixels.contiguous(memory_format=torch.channels_last))
    found, heads = [], []
    for region in REGIONS:
        pooled = [each for stage in stages for each in _mean_and_most(part_of(stage, region))]
        found.append(torch.cat(pooled, dim=1))
        heads.append(model.forward_head(part_of(last, region), pre_logits=True))
    # in one product: the classifier is large, and is read once for all regions
    scores = model.get_classifier()(torch.stack(heads, dim=1))
    return last, torch.cat([torch.stack(found, dim=1), scores], dim=-1), stages
