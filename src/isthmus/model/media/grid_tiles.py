"""`grid_tiles`: a grid of tiles with words around each, and the whole image last.

As in Idefics3 (Laurençon et al. 2024, arXiv 2408.12637, section 3.1) and SmolVLM (Marafioti et al.
2025, arXiv 2504.05299). The longest side of an image is made a whole number of tiles long, the
other is rounded up to tiles. Before each tile stand a token for a border and one for its place; a
row of tiles ends with a newline.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.config.base import Config, Count
from isthmus.config.registry import MEDIA
from isthmus.model.layout import HOLE, Layout
from isthmus.model.media.base import Parts
from isthmus.model.media.tiles import USUAL, TileMedium, edge, plain, processor_of


class GridCut:
    """Tiles row by row, then the whole image.

    Args:
        processor: Idefics3's or SmolVLM's image processor.
        tokenizer: The language model's.
        image_id: Id of its token for an image.
        tokens: Visual tokens of a tile.
        max_tiles: Most tiles besides the whole image, of which none is one; None as released.

    Attributes:
        unsplit: No rows and no columns.
    """

    unsplit: tuple[int, ...] = (0, 0)

    def __init__(
        self, processor: Any, tokenizer: Any, image_id: int, tokens: int, max_tiles: int | None
    ) -> None:
        self.processor = processor
        self.tile = edge(processor.max_image_size, "longest_edge")
        self.longest = edge(processor.size, "longest_edge")
        self.side = ceil(self.longest / self.tile)
        if not processor.do_image_splitting:
            max_tiles = 1
        self.most = min(max_tiles or self.side**2, self.side**2)
        self._words = {
            "image": tokenizer.convert_ids_to_tokens(image_id) * tokens,
            "border": getattr(tokenizer, "fake_image_token", "<fake_token_around_image>"),
            "whole": getattr(tokenizer, "global_image_token", "<global-img>"),
        }
        # now, and not where several threads would tokenize
        grids = [(r + 1, c + 1) for r in range(self.side) for c in range(self.side)]
        self._layouts: dict[tuple[int, ...], Layout] = {
            told: Layout(
                tuple(
                    HOLE if i == image_id else i
                    for i in tokenizer(self._text(told), add_special_tokens=False)["input_ids"]
                )
            )
            for told in (self.unsplit, *grids)
        }

    def _text(self, told: tuple[int, ...]) -> str:
        image, border, whole = self._words["image"], self._words["border"], self._words["whole"]
        rows, columns = told
        lines = [
            "".join(f"{border}<row_{r + 1}_col_{c + 1}>{image}" for c in range(columns))
            for r in range(rows)
        ]
        break_ = "\n" if rows else ""
        return "".join(f"{line}\n" for line in lines) + f"{break_}{border}{whole}{image}{border}"

    def cut(self, image: Image.Image) -> tuple[Tensor, tuple[int, ...]]:
        """Its tiles; told are rows and columns."""
        for side in range(self.side, 1, -1):
            if _area(image.size, side) > self.most:
                continue
            longest = self.longest if side == self.side else side * self.tile
            made = self._processed(image, size={"longest_edge": longest})
            told = (made["rows"][0][0], made["cols"][0][0])
            if told[0] * told[1] <= self.most:  # rounding may have added a row
                return made["pixel_values"][0], told
        made = self._processed(image, do_image_splitting=False)
        return made["pixel_values"][0], self.unsplit

    def _processed(self, image: Image.Image, **options: Any) -> Any:
        return self.processor(
            images=image, return_row_col_info=True, return_tensors="pt", **options
        )

    def layout(self, told: tuple[int, ...]) -> Layout:
        """Border, place and holes of each tile, a newline after each row; then the whole image."""
        return self._layouts[told]

    def ordered(self, tokens: Tensor, told: tuple[int, ...]) -> Tensor:
        """As they come."""
        return plain(tokens)

    def usual(self) -> tuple[int, ...]:
        """Rows and columns."""
        fitting = [s for s in range(self.side, 1, -1) if _area(USUAL, s) <= self.most]
        if not fitting:
            return self.unsplit
        return ceil(fitting[0] * min(USUAL) / max(USUAL)), fitting[0]

    def largest(self) -> tuple[int, ...]:
        """Rows and columns."""
        grids = [g for g in self._layouts if max(g) > 1 and g[0] * g[1] <= self.most]
        return max([self.unsplit, *grids], key=lambda g: (g[0] * g[1], g[0]))


def _area(size: tuple[int, int], side: int) -> int:
    """Tiles of an image whose longer side is so many of them long."""
    return side * max(1, ceil(side * min(size) / max(size) - 1e-6))


def unsplit(processor: Any, image: Image.Image) -> Tensor:
    """Pixels (3, H, W) of an image that is left whole."""
    made = processor(images=image, do_image_splitting=False, return_tensors="pt")
    pixels: Tensor = made["pixel_values"][0, 0]
    return pixels


@MEDIA.register("grid_tiles")
@dataclass(frozen=True, kw_only=True)
class GridTiles(Config):
    """Images in a grid of tiles, and whole (Idefics3, SmolVLM)."""

    max_tiles: Count | None = None
    """Most tiles of an image besides the whole; 1 leaves it whole, None is as released."""

    def build(self, parts: Parts) -> TileMedium:
        """The medium for a model."""
        processor = processor_of(parts, "grid_tiles")
        tokens, image_id = int(parts.connector.num_tokens), parts.special_tokens.image_id  # type: ignore[arg-type]
        tokenizer = parts.language.tokenizer
        return TileMedium(GridCut(processor, tokenizer, image_id, tokens, self.max_tiles))
