"""`any_resolution`: the whole image, then a grid of tiles that is one large image again.

As in LLaVA-NeXT (Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next) and
LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326). The image is fitted into the grid that wastes
least of it, its borders filled. The tokens of all tiles are put side by side, those that lie in the
border alone are taken off, and each row of tokens ends with a vector that is trained. OneVision
shrinks the rows and columns where there are more tokens than `cap` tiles have.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count, NotNegative
from isthmus.config.registry import MEDIA
from isthmus.errors import ConfigError
from isthmus.model.layout import HOLE, Layout
from isthmus.model.media.base import Parts
from isthmus.model.media.tiles import USUAL, TileMedium, edge, processor_of

SHRUNK = 1.1
"""How many times the cap, in length, the tokens may be before they are made fewer."""


class AnyResolutionCut(nn.Module):
    """The whole image, then the grid as one image, a newline after each row of tokens.

    Args:
        processor: LLaVA-NeXT's or LLaVA-OneVision's image processor.
        grid: Rows and columns of the patches of a tile.
        width: Width of the visual tokens.
        cap: Most tokens of the grid, in tiles; 0 for all.
        max_tiles: Most tiles of the grid; one leaves the image whole. None as released.

    Attributes:
        unsplit: No grid.
        newline: The vector that ends a row.
    """

    unsplit: tuple[int, ...] = (0, 0, 0, 0)

    def __init__(
        self,
        processor: Any,
        grid: tuple[int, int],
        width: int,
        *,
        cap: int = 0,
        max_tiles: int | None = None,
    ) -> None:
        super().__init__()
        self.processor, self.grid, self.cap = processor, grid, cap
        self.side = edge(processor.size, "height", "shortest_edge")
        pinpoints = [[int(h), int(w)] for h, w in processor.image_grid_pinpoints]
        self.pinpoints = [p for p in pinpoints if self._tiles(p) <= (max_tiles or 10**6)]
        if max_tiles == 1:
            self.pinpoints = []
        self._largest: tuple[int, ...] | None = None
        self.newline = nn.Parameter(torch.randn(width) / sqrt(width))

    def _tiles(self, pinpoint: list[int]) -> int:
        return (pinpoint[0] // self.side) * (pinpoint[1] // self.side)

    def cut(self, image: Image.Image) -> tuple[Tensor, tuple[int, ...]]:
        """The whole image and the tiles; told are their grid, and how many patches show any of it.

        The latter depend on the size that the image came in.
        """
        if not self.pinpoints:
            return unsplit(self.processor, image)[None], self.unsplit
        made = self.processor(
            images=image, image_grid_pinpoints=self.pinpoints, return_tensors="pt"
        )
        return made["pixel_values"][0], self._told(image.size)

    def _told(self, size: tuple[int, int]) -> tuple[int, ...]:
        from transformers.image_processing_utils import select_best_resolution

        width, height = size
        tall, wide = select_best_resolution((height, width), self.pinpoints)
        rows, columns = tall // self.side, wide // self.side
        across, down = columns * self.grid[1], rows * self.grid[0]
        # as `unpad_image` of Transformers, which rounds so that no patch is lost to arithmetic
        if width / height > across / down:
            shown = int(round(height * (across / width), 7))
            return rows, columns, down - (down - shown) // 2 * 2, across
        shown = int(round(width * (down / height), 7))
        return rows, columns, down, across - (across - shown) // 2 * 2

    def _kept(self, down: int, across: int) -> tuple[int, int]:
        """Rows and columns of tokens after the cap."""
        ratio = sqrt(down * across / (self.cap * self.grid[0] ** 2)) if self.cap else 0.0
        return (int(down // ratio), int(across // ratio)) if ratio > SHRUNK else (down, across)

    def layout(self, told: tuple[int, ...]) -> Layout:
        """A hole for each token and each newline."""
        return Layout((HOLE,) * self._holes(told))

    def _holes(self, told: tuple[int, ...]) -> int:
        rows, _, down, across = told
        whole = self.grid[0] * self.grid[1]
        if not rows:
            return whole + 1
        down, across = self._kept(down, across)
        return whole + down * (across + 1)

    def ordered(self, tokens: Tensor, told: tuple[int, ...]) -> Tensor:
        """The whole image's tokens, then the grid's row by row."""
        rows, columns, down, across = told
        newline = self.newline.to(tokens.dtype)
        if not rows:
            return torch.cat([tokens[:, 0], newline.expand(len(tokens), 1, -1)], dim=1)
        tall, wide = self.grid
        large: Any = tokens[:, 1:].reshape(len(tokens), rows, columns, tall, wide, -1)
        large = (
            large.transpose(2, 3).flatten(1, 2).flatten(2, 3)
        )  # (P, rows * tall, cols * wide, D)
        above, left = (rows * tall - down) // 2, (columns * wide - across) // 2
        large = large[:, above : above + down, left : left + across]
        if (kept := self._kept(down, across)) != (down, across):
            large = F.interpolate(large.permute(0, 3, 1, 2), list(kept), mode="bilinear")
            large = large.permute(0, 2, 3, 1)
        ends = newline.expand(*large.shape[:2], 1, -1)
        large = torch.cat([large, ends], dim=2).flatten(1, 2)
        return torch.cat([tokens[:, 0], large], dim=1)

    def usual(self) -> tuple[int, ...]:
        """As `cut` tells of such an image."""
        return self._told(USUAL) if self.pinpoints else self.unsplit

    def largest(self) -> tuple[int, ...]:
        """That of an image which fills its grid, or as much of it as the cap leaves alone."""
        if self._largest is None:
            found = [self.unsplit]
            for tall, wide in self.pinpoints:
                rows, columns = tall // self.side, wide // self.side
                down, across = rows * self.grid[0], columns * self.grid[1]
                found += [(rows, columns, down, kept) for kept in range(across, 0, -2)]
                found += [(rows, columns, kept, across) for kept in range(down, 0, -2)]
            self._largest = max(found, key=self._holes)
        return self._largest


def unsplit(processor: Any, image: Image.Image) -> Tensor:
    """Pixels (3, H, W) of an image that is left whole.

    OneVision's processor leaves images whole where a prompt has several, and fills them up to a
    square then; LLaVA-NeXT's squeezes the whole image, as it does beside the tiles.
    """
    side = edge(processor.size, "height", "shortest_edge")
    shown: Any = image
    if hasattr(processor, "pad_to_square"):
        shown = [[image, Image.new("RGB", (1, 1))]]  # it takes one image alone for one to cut
    made = processor(images=shown, image_grid_pinpoints=[[side, side]], return_tensors="pt")
    pixels: Tensor = made["pixel_values"][0][0]
    return pixels


@MEDIA.register("any_resolution")
@dataclass(frozen=True, kw_only=True)
class AnyResolution(Config):
    """Images whole and in a grid of tiles, as one large image (LLaVA-NeXT, LLaVA-OneVision)."""

    max_tiles: Count | None = None
    """Most tiles of an image besides the whole; 1 leaves it whole, None is as released."""
    cap: NotNegative = 0
    """Most visual tokens of the grid, in tiles; where there are more they are made fewer. 0 for
    all."""

    def build(self, parts: Parts) -> TileMedium:
        """The medium for a model.

        Raises:
            ConfigError: If the connector does not keep a token for each patch.
        """
        processor = processor_of(parts, "any_resolution")
        grid, tokens = parts.vision.shape.grid, int(parts.connector.num_tokens)  # type: ignore[arg-type]
        if grid is None or grid[0] * grid[1] != tokens:
            raise ConfigError(
                f"any_resolution lays tiles side by side, and a tile has {tokens} visual tokens of "
                f"the grid {grid} of patches: expected a connector that keeps each, such as mlp, "
                "and no class token"
            )
        width = parts.fusion.visual_width
        return TileMedium(
            AnyResolutionCut(processor, grid, width, cap=self.cap, max_tiles=self.max_tiles)
        )
