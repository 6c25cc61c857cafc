"""Images at their own resolution, for towers whose number of patches varies with the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.config.base import Config, Count
from isthmus.config.registry import MEDIA
from isthmus.errors import ConfigError, ImageError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode, open_image
from isthmus.model.backbones.native import native_pixels
from isthmus.model.connectors import tokens_of
from isthmus.model.layout import HOLE, Layout
from isthmus.model.media.base import Parts
from isthmus.model.media.image import ImageMedium


class NativeMedium(ImageMedium):
    """Images: pixels (3, H, W), of as many patches as the image has room for.

    Args:
        config: The bounds on its size.

    Attributes:
        options: What the caches of engines tell apart besides an image's content.
    """

    name = "image"
    varies = True

    def __init__(self, config: NativeImages) -> None:
        self.config = config
        self.options = f"{config.min_pixels} {config.max_pixels}"

    def open(self, parts: Parts, source: Any) -> Tensor:
        """Pixels (3, H, W), whose sides are multiples of a square of patches."""
        low, high = self.config.min_pixels, self.config.max_pixels
        if isinstance(source, Tensor) or (low is None and high is None):
            return super().open(parts, source)
        if isinstance(source, FileRef):
            source = decode(source, source.read())
        image = source if isinstance(source, Image.Image) else open_image(source)
        if image.mode != "RGB":
            image = open_image(image)
        processor = parts.vision.processor
        return native_pixels(processor, image, min_pixels=low, max_pixels=high)

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        """The fusion's, for as many tokens as the connector makes of the patches.

        Where these are one for each square of patches, the layout tells their rows and columns.

        Raises:
            ImageError: If the sides of the pixels are no multiples of a square.
        """
        native = parts.vision.shape.native
        assert native is not None
        height, width = parts.vision.image_size if opened is None else opened.shape[-2:]
        if height % native.multiple or width % native.multiple:
            raise ImageError(
                f"pixels of {height} x {width}: expected multiples of {native.multiple}, "
                "the side of a square of patches; pass the image itself"
            )
        rows, columns = height // native.multiple, width // native.multiple
        count = tokens_of(parts.connector, rows * columns * native.merge**2)
        layout = parts.fusion.layout(count)
        if count == rows * columns and layout.ids == (HOLE,) * count:
            return replace(layout, grid=(rows, columns))
        return layout


@MEDIA.register("native")
@dataclass(frozen=True, kw_only=True)
class NativeImages(Config):
    """Images at their own resolution (Qwen2-VL and its successors)."""

    min_pixels: Count | None = None
    """Least pixels of what an image is resized to; None for the processor's own number."""
    max_pixels: Count | None = None
    """Most of them. An image's memory and time grow with it; in a prompt it takes about this number
    divided by the pixels of a square of patches (28 x 28 in Qwen2-VL, 32 x 32 in Qwen3-VL)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"min_pixels = {low} and max_pixels = {high}: expected the smaller number first"
            )

    def build(self, parts: Parts) -> NativeMedium:
        """The medium of a model.

        Raises:
            ConfigError: If its vision encoder reads images of one size, or has no processor that
                takes bounds.
        """
        if parts.vision.shape.native is None:
            raise ConfigError(
                "images at their own resolution need a vision encoder that reads them so, such as "
                "hf:Qwen/Qwen2.5-VL-3B-Instruct: this one reads images of "
                f"{parts.vision.image_size[0]} x {parts.vision.image_size[1]} pixels; leave the "
                "medium out"
            )
        bounded = self.min_pixels is not None or self.max_pixels is not None
        if bounded and (parts.vision.processor is None or not parts.vision.varies):
            raise ConfigError(
                "min_pixels and max_pixels are for the encoder's own image processor: pass it to "
                'load_vision as preprocess=, and leave resize = "own"'
            )
        return NativeMedium(self)
