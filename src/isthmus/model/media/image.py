"""Images and clips: one vision encoder, one connector, and the layout of the fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from isthmus.errors import ImageError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode, open_image
from isthmus.model.features import Encoding, PatchFeatures
from isthmus.model.layout import Layout
from isthmus.model.media.base import Parts, connected, fixed_layout


def picture_of(source: Any) -> Image.Image:
    """An image of a file, its bytes, or whatever else `open_image` reads.

    Raises:
        ImageError: If it cannot be read.
    """
    if isinstance(source, FileRef):
        source = decode(source, source.read())
    return source if isinstance(source, Image.Image) else open_image(source)


class ImageMedium:
    """Images: anything that `open_image` reads, or pixels (3, H, W)."""

    name = "image"
    varies = False

    def takes(self, source: Any) -> bool:
        """Whether it is one; what is no tensor and no sequence of others is taken for one."""
        if isinstance(source, Tensor):
            return source.ndim == 3
        if isinstance(source, FileRef):
            return source.kind == "image"
        return isinstance(source, (str, bytes, bytearray)) or not isinstance(source, Sequence)

    def open(self, parts: Parts, source: Any) -> Tensor:
        """Pixels (3, H, W)."""
        if isinstance(source, Tensor):
            return source
        return parts.vision.preprocess(picture_of(source))

    def encoding(self, parts: Parts) -> Encoding | None:
        """The features of the vision encoder; None where their number varies with the image."""
        return None if parts.vision.varies else PatchFeatures(parts.vision)

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        """Features (P, N, D_vision) of pixels (P, 3, H, W)."""
        features: Tensor = parts.vision(opened)
        return features

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        """The connector's."""
        return connected(parts, features)

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        """The fusion's, for the connector's number of tokens."""
        return fixed_layout(parts)


class ClipMedium(ImageMedium):
    """Clips: a sequence of images, or pixels (T, 3, H, W)."""

    name = "clip"

    def takes(self, source: Any) -> bool:
        """Whether it is one."""
        if isinstance(source, Tensor):
            return source.ndim == 4
        return isinstance(source, (tuple, list))

    def open(self, parts: Parts, source: Any) -> Tensor:
        """Pixels (T, 3, H, W)."""
        if isinstance(source, Tensor):
            return source
        if not source:
            raise ImageError("got an empty list as an image: expected the frames of a clip")
        frames = [super(ClipMedium, self).open(parts, frame) for frame in source]
        if len({frame.shape for frame in frames}) > 1:
            raise ImageError(
                "the frames of a clip became pixels of different sizes: expected frames of one "
                "size, since this vision encoder reads images at their own resolution"
            )
        return torch.stack(frames)

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        """Features (P, T, N, D_vision) of pixels (P, T, 3, H, W)."""
        features: Tensor = parts.vision(opened.flatten(0, 1))
        return features.view(*opened.shape[:2], *features.shape[1:])
