"""`placed_tiles`: the whole image first, then a grid of tiles, each behind a token for its place.

As in nanoVLM (Wiedmann, Roy Gosthipaty and Marafioti 2025, huggingface.co/blog/nanovlm). An image
is stretched until both of its sides are a whole number of tiles long, and no longer than allowed.
An image of one tile is the whole image alone. Earlier models have no whole image, but tiles alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from isthmus.config.base import Config, Count
from isthmus.config.registry import MEDIA
from isthmus.errors import ConfigError
from isthmus.model.layout import HOLE, Layout
from isthmus.model.media.base import Parts
from isthmus.model.media.tiles import USUAL, TileMedium, plain, processor_of


@dataclass(frozen=True)
class StretchedImages:
    """nanoVLM's image processor: pixels from 0 to 1, which nothing is subtracted from.

    Attributes:
        tile: Side of a tile in pixels.
        longest: Longest side of an image in pixels, a multiple of `tile`.
        fill: Whether every image is made as large as that, also a small one.
        whole: The token before the whole image; None if there are tiles alone.
        places: The token before each tile, by its row and column from 0.
        image_mean, image_std, do_normalize: As in image processors of Transformers.

    Example:
        >>> images = StretchedImages(tile=4, longest=8)
        >>> images(Image.new("RGB", (3, 9), "white"))["pixel_values"].shape
        torch.Size([1, 3, 4, 4])
    """

    tile: int
    longest: int
    fill: bool = False
    whole: str | None = None
    places: Mapping[tuple[int, int], str] = field(default_factory=dict)
    image_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    image_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    do_normalize: bool = False

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Tensor]:
        """Pixels (1, 3, H, W) of an image that is squeezed into one tile.

        A model without tiles was trained on images that were resized bilinearly.
        """
        square = (self.tile, self.tile)
        resized = images.resize(square, Image.Resampling.BILINEAR)
        return {"pixel_values": _pixels(resized)[None]}

    def grid(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """Rows and columns of an image of a width and height, where a side has so many tiles."""
        long, short = max(size), min(size)
        longest = side * self.tile
        if not self.fill:
            longest = min(longest, ceil(long / self.tile) * self.tile)
        # the order of operations is nanoVLM's: it decides where a product is barely a whole number
        other = max(1, ceil(short * (longest / long) / self.tile))
        columns, rows = longest // self.tile, min(other, side)
        return (rows, columns) if size[0] >= size[1] else (columns, rows)

    def cut(self, image: Image.Image, grid: tuple[int, int]) -> Tensor:
        """Tiles (T, 3, H, W) of an image of so many rows and columns."""
        rows, columns = grid
        size = (columns * self.tile, rows * self.tile)
        pixels = _pixels(image.resize(size, Image.Resampling.BICUBIC))
        tiles = pixels.unflatten(2, (columns, self.tile)).unflatten(1, (rows, self.tile))  # type: ignore[no-untyped-call]
        tiles = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
        if self.whole is None or rows * columns == 1:
            return tiles.contiguous()
        square = (self.tile, self.tile)
        whole = F.interpolate(
            pixels[None], square, mode="bilinear", align_corners=False, antialias=True
        )
        return torch.cat([whole, tiles])


def _pixels(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) from 0 to 1."""
    values = torch.from_numpy(np.array(image.convert("RGB"), copy=True))
    return values.permute(2, 0, 1).contiguous().float().div(255)


class PlacedCut:
    """The whole image, then tiles row by row.

    Args:
        processor: nanoVLM's image processor.
        tokenizer: The language model's.
        tokens: Visual tokens of a tile.
        max_tiles: Most tiles besides the whole image; None as released.

    Attributes:
        unsplit: One row and one column.

    Raises:
        ConfigError: If there is no token for a place.
    """

    unsplit: tuple[int, ...] = (1, 1)

    def __init__(
        self, processor: StretchedImages, tokenizer: Any, tokens: int, max_tiles: int | None
    ) -> None:
        self.processor, self.tokens = processor, tokens
        self.side = processor.longest // processor.tile
        self.most = min(max_tiles or self.side**2, self.side**2)

        def id_of(token: str) -> int:
            return int(tokenizer.convert_tokens_to_ids(token))

        self._whole = None if processor.whole is None else id_of(processor.whole)
        places = [(row, column) for row in range(self.side) for column in range(self.side)]
        if missing := [place for place in places if place not in processor.places]:
            row, column = missing[0]
            raise ConfigError(
                f"an image has up to {self.side} x {self.side} tiles, and the model has no token "
                f"for row {row + 1}, column {column + 1} (vlm_extra_tokens, "
                f"r{row + 1}c{column + 1}): expected one for each"
            )
        self._places = {place: id_of(processor.places[place]) for place in places}

    def cut(self, image: Image.Image) -> tuple[Tensor, tuple[int, ...]]:
        """Its tiles; told are rows and columns."""
        grid = self._grid(image.size)
        return self.processor.cut(image, grid), grid

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest grid of no more tiles than allowed."""
        grids = (self.processor.grid(size, side) for side in range(self.side, 0, -1))
        return next(grid for grid in grids if grid[0] * grid[1] <= self.most)

    def layout(self, told: tuple[int, ...]) -> Layout:
        """A token and holes for the whole image, and likewise for each tile of several."""
        rows, columns = told
        holes = (HOLE,) * self.tokens
        ids: list[int] = [] if self._whole is None else [self._whole, *holes]
        if rows * columns > 1 or self._whole is None:
            for row in range(rows):
                for column in range(columns):
                    ids += [self._places[row, column], *holes]
        return Layout(tuple(ids))

    def ordered(self, tokens: Tensor, told: tuple[int, ...]) -> Tensor:
        """As they come."""
        return plain(tokens)

    def usual(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self._grid(USUAL)

    def largest(self) -> tuple[int, ...]:
        """Rows and columns."""
        sides = range(1, self.side + 1)
        grids = [(r, c) for r in sides for c in sides if r * c <= self.most]
        return max(grids, key=lambda grid: (grid[0] * grid[1], grid[0]))


def unsplit(processor: StretchedImages, image: Image.Image) -> Tensor:
    """Pixels (3, H, W) of an image that is left whole."""
    return processor.cut(image, (1, 1))[0]


@MEDIA.register("placed_tiles")
@dataclass(frozen=True, kw_only=True)
class PlacedTiles(Config):
    """Images whole, and in a grid of tiles each of which has its place (nanoVLM)."""

    max_tiles: Count | None = None
    """Most tiles of an image besides the whole; 1 leaves it whole, None is as released."""

    def build(self, parts: Parts) -> TileMedium:
        """The medium for a model."""
        processor = processor_of(parts, "placed_tiles")
        tokens = int(parts.connector.num_tokens)  # type: ignore[arg-type]
        return TileMedium(PlacedCut(processor, parts.language.tokenizer, tokens, self.max_tiles))
