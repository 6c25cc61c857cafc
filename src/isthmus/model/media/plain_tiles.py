"""`plain_tiles`: tiles one after another, and the whole image last.

As in InternVL (Chen et al. 2024, arXiv 2404.16821, section 3.2): the image is squeezed into the
grid of at most twelve tiles whose aspect is nearest to its own. A token stands before all tiles and
one behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.config.base import Config, Count
from isthmus.config.registry import MEDIA
from isthmus.model.layout import HOLE, Layout
from isthmus.model.media.base import Parts
from isthmus.model.media.tiles import USUAL, TileMedium, plain, processor_of


class PlainCut:
    """Tiles row by row, then the whole image if there are several.

    Args:
        processor: InternVL's image processor.
        around: Ids of the tokens before and behind an image.
        tokens: Visual tokens of a tile.
        max_tiles: Most tiles besides the whole image; None as released.

    Attributes:
        unsplit: One tile.
    """

    unsplit: tuple[int, ...] = (1,)

    def __init__(
        self, processor: Any, around: tuple[int, int], tokens: int, max_tiles: int | None
    ) -> None:
        self.processor, self.around, self.tokens = processor, around, tokens
        self.most = min(max_tiles or processor.max_patches, processor.max_patches)

    def cut(self, image: Image.Image) -> tuple[Tensor, tuple[int, ...]]:
        """Its tiles; told is their number."""
        made = self.processor(
            images=image,
            crop_to_patches=True,
            min_patches=min(self.processor.min_patches, self.most),
            max_patches=self.most,
            return_tensors="pt",
        )
        pixels: Tensor = made["pixel_values"]
        return pixels, (len(pixels),)

    def layout(self, told: tuple[int, ...]) -> Layout:
        """The holes of all tiles between two tokens."""
        before, behind = self.around
        return Layout((before, *(HOLE,) * (self.tokens * told[0]), behind))

    def ordered(self, tokens: Tensor, told: tuple[int, ...]) -> Tensor:
        """As they come."""
        return plain(tokens)

    def usual(self) -> tuple[int, ...]:
        """As `cut` tells of such an image."""
        _, told = self.cut(Image.new("RGB", USUAL))
        return told

    def largest(self) -> tuple[int, ...]:
        """All tiles, and the whole image."""
        return (self.most + (self.most > 1),)


def unsplit(processor: Any, image: Image.Image) -> Tensor:
    """Pixels (3, H, W) of an image that is left whole."""
    made = processor(images=image, crop_to_patches=False, return_tensors="pt")
    pixels: Tensor = made["pixel_values"][0]
    return pixels


@MEDIA.register("plain_tiles")
@dataclass(frozen=True, kw_only=True)
class PlainTiles(Config):
    """Images in tiles one after another, and whole (InternVL)."""

    before: str = "<img>"
    """The token before an image."""
    behind: str = "</img>"
    """The token behind it."""
    max_tiles: Count | None = None
    """Most tiles of an image besides the whole; 1 leaves it whole, None is as released."""

    def build(self, parts: Parts) -> TileMedium:
        """The medium for a model."""
        processor = processor_of(parts, "plain_tiles")
        words = parts.language.tokenizer
        around = (
            int(words.convert_tokens_to_ids(self.before)),
            int(words.convert_tokens_to_ids(self.behind)),
        )
        tokens = int(parts.connector.num_tokens)  # type: ignore[arg-type]
        return TileMedium(PlainCut(processor, around, tokens, self.max_tiles))
