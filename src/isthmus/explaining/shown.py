"""The images of a prompt as the model sees them, and what their visual tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.explaining.explanation import ShownImage
from isthmus.explaining.inputs import Inputs
from isthmus.explaining.pixels import picture_of
from isthmus.model.connectors.patch_shares import pooled
from isthmus.model.layout import HOLE, starts
from isthmus.model.media.base import Attachment, features_of
from isthmus.model.vlm import VisionLanguageModel


def shown_images(
    model: VisionLanguageModel, inputs: Inputs, opened: Sequence[Attachment]
) -> tuple[tuple[ShownImage, ...], list[Tensor]]:
    """The images as the model sees them, and their visual tokens (M_i, D_visual).

    Args:
        model: The model.
        inputs: The prompt that they stand in.
        opened: What their media made of them.
    """
    features: dict[int, Tensor] = {}
    visual: dict[int, Tensor] = {}
    for medium, numbers, together in features_of(model, opened):
        visual |= dict(zip(numbers, medium.connect(model, together), strict=True))
        if medium.name == "image" and not medium.varies:
            dtype = next(model.connector.parameters(), together).dtype
            features |= dict(zip(numbers, together[:, None].to(dtype), strict=True))
    begins = starts(inputs.ids, inputs.layouts, model.special_tokens.image_id)
    found = []
    for number, pixels in enumerate(opened):
        count, own = len(visual[number]), features.get(number)
        layout = inputs.layouts[number].ids
        labels, shares = parts_of(model, own, count)
        grid = None if own is None else model.vision.patch_grid[1]
        found.append(
            ShownImage(
                name=f"image {number + 1}",
                picture=None if own is None else _picture(model, pixels),
                labels=labels,
                grid=grid,
                shares=shares,
                cells=cells_of(shares, grid),
                text=tuple(begins[number] + i for i, id_ in enumerate(layout) if id_ == HOLE),
            )
        )
    return tuple(found), [visual[number] for number in range(len(visual))]


def _picture(model: VisionLanguageModel, pixels: Attachment) -> Image.Image | None:
    """The picture; None where the encoder has no preprocessing that could tell."""
    if not isinstance(pixels, Tensor):
        return None
    try:
        return picture_of(model.vision, pixels)
    except ConfigError:
        return None


def parts_of(
    model: VisionLanguageModel, features: Tensor | None, count: int
) -> tuple[tuple[str, ...], Tensor | None]:
    """What visual tokens are called, and how much each has from each patch (M, N).

    What it has from class and register tokens, which are of no place, is left out.

    Args:
        model: The model.
        features: (1, N, D) of an image; None for what is no image.
        count: Visual tokens M.
    """
    connector: Any = model.connector
    labels: tuple[str, ...] = ()
    if features is not None and hasattr(connector, "token_labels"):
        labels = tuple(connector.token_labels(features)[0])
    if len(labels) != count:
        labels = tuple(f"visual token {number + 1}" for number in range(count))
    front, grid = model.vision.patch_grid
    if features is None or grid is None:
        return labels, None
    patches = grid[0] * grid[1]
    if hasattr(connector, "patch_shares"):
        shares: Tensor = connector.patch_shares(features)[0].to("cpu", torch.float32)
        fits = shares.shape == (count, front + patches)
        return labels, shares[:, front:] if fits else None
    one_each = count == features.shape[1] == front + patches
    return labels, torch.eye(count)[:, front:] if one_each else None


def cells_of(shares: Tensor | None, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """(rows, columns) of visual tokens that lie on a grid, each on patches of its own.

    Args:
        shares: (M, N) how much each visual token has from each patch.
        grid: (rows, columns) of the patches.

    Example:
        >>> cells_of(torch.eye(6), (2, 3)), cells_of(torch.ones(2, 4) / 4, (2, 2))
        ((2, 3), None)
    """
    if shares is None or grid is None:
        return None
    count = len(shares)
    for rows in range(1, grid[0] + 1):
        cells = (rows, count // rows)
        if count % rows or cells[1] > grid[1]:
            continue
        if torch.allclose(pooled(grid, cells), shares):
            return cells
    return None
