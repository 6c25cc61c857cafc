"""Images as the model sees them: pixels back to a picture, and parts of them covered with grey."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from isthmus.model.backbones.vision import VisionEncoder

GREY = (128, 128, 128)


def picture_of(vision: VisionEncoder, pixels: Tensor) -> Image.Image:
    """The picture that pixels (3, H, W) show.

    Preprocessing scales every channel and moves it; how, is read off what it makes of black and of
    white.

    Raises:
        ConfigError: If the encoder has no preprocessing.
    """
    black, white = (_plain(vision, pixels, colour).amin((1, 2)) for colour in ("black", "white"))
    span = (white - black)[:, None, None]
    values = (pixels.float().cpu() - black[:, None, None]) / torch.where(span == 0, 1.0, span)
    array = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(array.numpy())


def grey_for(vision: VisionEncoder, pixels: Tensor) -> Tensor:
    """The pixels (3, H, W) of a grey image.

    Raises:
        ConfigError: If the encoder has no preprocessing.
    """
    return _plain(vision, pixels, GREY)


def _plain(vision: VisionEncoder, pixels: Tensor, colour: str | tuple[int, int, int]) -> Tensor:
    """The pixels (3, H, W) of one colour, of an image of the encoder's own shape: no padding."""
    height, width = pixels.shape[1:]
    return vision.preprocess(Image.new("RGB", (width, height), colour))


def cover(pixels: Tensor, by: Tensor, side: int) -> Tensor:
    """Copies of an image, each with another region replaced (Zeiler and Fergus 2014, section 4.2).

    Args:
        pixels: (3, H, W).
        by: (3, H, W), what stands where it is covered.
        side: Regions in a row and in a column.

    Returns:
        (side * side, 3, H, W), region by region, row by row.

    Example:
        >>> covered = cover(torch.ones(3, 4, 4), torch.zeros(3, 4, 4), 2)
        >>> covered[1, 0].int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    height, width = pixels.shape[1:]
    found = pixels.repeat(side * side, 1, 1, 1)
    for row in range(side):
        for column in range(side):
            down = slice(row * height // side, (row + 1) * height // side)
            across = slice(column * width // side, (column + 1) * width // side)
            found[row * side + column, :, down, across] = by[:, down, across]
    return found
