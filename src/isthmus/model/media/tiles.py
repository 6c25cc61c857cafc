"""Images that are cut into tiles, each of which the vision encoder reads by itself.

How an image is cut, what its tokens are and in which order they come is a `Cut`, one for each way
that released models have: a grid with words around each tile (`grid_tiles`), a grid that is one
large image again (`any_resolution`), tiles one after another (`plain_tiles`), the whole image and
then a grid with a word before each tile (`placed_tiles`). The medium opens the image, runs
all tiles through the encoder and the connector, and leaves the rest to the cut.

Letters: P images of one grid, T tiles of each (the whole image, made small, among them), N patches
and M visual tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.media.image import open_image
from isthmus.model.layout import Layout
from isthmus.model.media.base import Opened, Parts, connected
from isthmus.model.media.image import ImageMedium, picture_of

TILES_AT_ONCE = 16
"""Tiles that the vision encoder reads in one pass."""
USUAL = (640, 480)
"""Width and height of an image as they mostly are, for estimates."""


class Cut(Protocol):
    """A way of cutting images; an `nn.Module` if something of it is trained.

    Attributes:
        unsplit: What is told of an image that is left whole.
    """

    unsplit: tuple[int, ...]

    def cut(self, image: Image.Image) -> tuple[Tensor, tuple[int, ...]]:
        """The tiles (T, 3, H, W) of an image, and what is told of their grid.

        As the image processor that the model was released with makes them.
        """
        ...

    def layout(self, told: tuple[int, ...]) -> Layout:
        """Where an image of this grid stands in the text."""
        ...

    def ordered(self, tokens: Tensor, told: tuple[int, ...]) -> Tensor:
        """Visual tokens (P, M', D) of images, of those of their tiles (P, T, M, D)."""
        ...

    def usual(self) -> tuple[int, ...]:
        """What is told of an image of `USUAL` size."""
        ...

    def largest(self) -> tuple[int, ...]:
        """What is told of the image that takes most of the text."""
        ...


class TileMedium(nn.Module):
    """Images in tiles; pixels (3, H, W) are an image that is left whole.

    Args:
        cut: How they are cut.

    Attributes:
        cut: Likewise.
        name, varies: As in `Medium`.
    """

    name = "tiles"
    varies = True

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut

    def takes(self, source: Any) -> bool:
        """Whether it is an image."""
        return ImageMedium().takes(source)

    def open(self, parts: Parts, source: Any) -> Opened:
        """Its tiles."""
        if isinstance(source, Opened):
            return source
        if isinstance(source, Tensor):
            return self.open_low(parts, source)
        image = picture_of(source)
        tiles, told = self.cut.cut(image if image.mode == "RGB" else open_image(image))
        return Opened(self.name, tiles, told)

    def open_low(self, parts: Parts, source: Any) -> Opened:
        """The image left whole."""
        if isinstance(source, Opened):
            return source
        whole = (
            source if isinstance(source, Tensor) else parts.vision.preprocess(picture_of(source))
        )
        return Opened(self.name, whole[None], self.cut.unsplit)

    def encoding(self, parts: Parts) -> None:
        """Features of images that differ in number are not kept."""

    def features(self, parts: Parts, opened: Opened) -> Tensor:
        """Features (P, T, N, D_vision) of tiles (P, T, 3, H, W)."""
        images, count = opened.values.shape[:2]
        tiles = torch.split(opened.values.flatten(0, 1), TILES_AT_ONCE)
        found = torch.cat([parts.vision(own) for own in tiles])
        return found.view(images, count, *found.shape[1:])

    def connect(self, parts: Parts, features: Opened) -> Tensor:
        """The connector's, tile by tile, in the order of the cut."""
        images, count = features.values.shape[:2]
        tokens = connected(parts, features.values.flatten(0, 1))
        tokens = tokens.view(images, count, *tokens.shape[1:])
        return self.cut.ordered(tokens, features.told)

    def layout(self, parts: Parts, opened: Opened) -> Layout:
        """The cut's."""
        return self.cut.layout(opened.told)

    def usual(self, parts: Parts) -> Layout:
        """That of an image of 640 x 480 pixels."""
        return self.cut.layout(self.cut.usual())

    def largest(self, parts: Parts) -> Layout:
        """That of the image that takes most of the text."""
        return self.cut.layout(self.cut.largest())


class Unsplit:
    """An image processor that cuts images, as one that makes one array of one size of each.

    `VisionEncoder` takes it for its preprocessing.

    Args:
        whole: The image processor.
        shown: Pixels (3, H, W) of it for an image that is left whole.
    """

    def __init__(self, whole: Any, shown: Callable[[Any, Image.Image], Tensor]) -> None:
        self.whole = whole
        self.shown = shown
        self.image_mean, self.image_std = whole.image_mean, whole.image_std
        self.do_normalize = getattr(whole, "do_normalize", True)

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Tensor]:
        """As image processors of Transformers are called."""
        return {"pixel_values": self.shown(self.whole, images)[None]}


def processor_of(parts: Parts, kind: str) -> Any:
    """The image processor that the model's images are cut by.

    Args:
        parts: The model.
        kind: What the configuration of the medium is called.

    Raises:
        ConfigError: If its vision encoder came without one.
    """
    processor = parts.vision.processor
    if not isinstance(processor, Unsplit):
        raise ConfigError(
            f"{kind} cuts images by the image processor of a released model, and the vision "
            f'encoder "{parts.vision.config.name}" has none: name it "hf:REPO", after the model'
        )
    return processor.whole


def plain(tokens: Tensor) -> Tensor:
    """Visual tokens (P, T * M, D) of tiles one after another."""
    return tokens.flatten(1, 2)


def edge(size: Any, *names: str) -> int:
    """The first of an image processor's sizes that is set.

    Example:
        >>> edge({"longest_edge": 364}, "longest_edge")
        364
    """
    values = size if isinstance(size, dict) else vars(size)
    found = [int(values[name]) for name in names if values.get(name)]
    if not found:
        raise ConfigError(f"the image processor's size is {size}: expected {' or '.join(names)}")
    return found[0]
