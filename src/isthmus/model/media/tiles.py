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

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode, open_image
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.features import cache_key, in_half
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
        """Features of images that differ in number are kept tile by tile; see `pieces`."""

    def pieces(self, parts: Parts) -> TileFeatures:
        """The vision encoder's features of each tile."""
        return TileFeatures(parts.vision, self.cut)

    def features(self, parts: Parts, opened: Opened) -> Tensor:
        """Features (P, T, N, D_vision) of tiles (P, T, 3, H, W)."""
        images, count = opened.values.shape[:2]
        found = _encoded(parts.vision, opened.values.flatten(0, 1))
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


def _encoded(encoder: VisionEncoder, tiles: Tensor) -> Tensor:
    """Features (K, N, D_vision) of tiles (K, 3, H, W)."""
    return torch.cat([encoder(own) for own in torch.split(tiles, TILES_AT_ONCE)])


class TileFeatures:
    """A frozen vision encoder's features (N, D_vision) of each tile, in half precision.

    Args:
        encoder: The encoder, on any device.
        cut: How images are cut.

    Attributes:
        name, shape, dtype: As in `Encoding`. The name tells any other encoder, cut or image
            processor from these.
    """

    def __init__(self, encoder: VisionEncoder, cut: Cut) -> None:
        self.encoder, self.cut = encoder, cut
        self.name = f"tiles-{self._key()}.f16"
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.dtype: Any = np.float16

    def _key(self) -> str:
        whole: Any = getattr(self.encoder.processor, "whole", None)
        settings = whole.to_dict() if hasattr(whole, "to_dict") else whole
        told = f"{cache_key(self.encoder)} {type(self.cut).__name__} {settings}"
        digest = hashlib.sha256(f"{told} {self.cut.unsplit} {self.cut.largest()}".encode())
        ramp = np.add.outer(np.arange(300), np.arange(500)[:, None] * np.arange(1, 4)) % 256
        for probe in (ramp, ramp.transpose(1, 0, 2)):
            tiles, grid = self.cut.cut(Image.fromarray(np.ascontiguousarray(probe, np.uint8)))
            digest.update(f"{grid}".encode())
            digest.update(tiles.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def open(self, file: FileRef, data: bytes, key: str) -> tuple[Tensor, tuple[int, ...]]:
        """Tiles (T, 3, H, W) and what is told of their grid."""
        return self.cut.cut(decode(file, data))

    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        """Features (T, N, D_vision) of tiles (T, 3, H, W)."""
        place = next(self.encoder.parameters()).device
        return in_half(_encoded(self.encoder, opened.to(place)), files)


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
