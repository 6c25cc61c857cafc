"""Opening images that strangers made. Pure: no torch.

The size is read from the header before anything is decoded, only known formats are opened, EXIF
orientation is applied, transparency is laid over white, and a truncated file is refused. What
comes out is always an RGB image.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from isthmus.errors import ImageError
from isthmus.media.fetch import is_url
from isthmus.media.file_ref import FileRef
from isthmus.media.kinds import KINDS

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 40_000_000
"""Largest image that is decoded: 40 megapixels, 120 MB as RGB."""
MOST_SIDE = 30_000
"""Longest side, in pixels; a JPEG may claim 65,535."""
MOST_ASPECT = 200
"""Longest side over shortest: encoders enlarge the shortest to some hundred pixels first, which
makes gigabytes of an image one pixel high."""
MOST_FILE_BYTES = 200_000_000
"""Largest file that is read; a bitmap of 40 megapixels with transparency has 160 MB."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""How image files in folders are called, in lower case."""

Source = str | Path | bytes | BinaryIO | Image.Image


def open_image(source: Source) -> Image.Image:
    """Opens an image as RGB.

    Args:
        source: A path, the bytes of a file, a binary file, or a PIL image.

    Returns:
        An RGB image, upright, transparency laid over white; the first frame of an animation.

    Raises:
        ImageError: If it is missing, empty, of another format, too large or truncated.

    Example:
        >>> open_image(Image.new("RGBA", (2, 1))).getpixel((0, 0))
        (255, 255, 255)
    """
    with warnings.catch_warnings():
        # Pillow warns of sizes that are checked here, and of damaged metadata, which is ignored
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _decode(source, "the image given")
        data, name = _read(source)
        if not data:
            raise ImageError(f"{name} is empty (0 bytes): expected an image")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError(
                f"{name} is not an image of a known format, or it is damaged: expected one of "
                f"{', '.join(FORMATS)}"
            ) from None
        except Image.DecompressionBombError as error:  # Pillow looks at the header, as we do
            raise ImageError(
                f"{name} is too large: {_line(error)}; expected at most "
                f"{MOST_PIXELS // 1_000_000} megapixels"
            ) from error
        except Exception as error:  # Pillow's own for damaged files, and struct.error, zlib.error
            raise ImageError(f"{name} cannot be opened: {_line(error)}") from error
        return _decode(image, name)


def _line(text: object) -> str:
    """Something as one line that is not too long for a message."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def _read(source: str | Path | bytes | BinaryIO) -> tuple[bytes, str]:
    """The bytes of a file, and what to call it in a message."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), f"the {len(source)} bytes given"
    if isinstance(source, (str, os.PathLike)):
        if is_url(str(source)):
            raise ImageError(f"{_line(source)} is an address: fetch it and pass the file")
        return _read_file(Path(source))
    if not hasattr(source, "read"):
        raise ImageError(
            f"got {type(source).__name__}: expected a path, bytes, a binary file or a PIL image"
        )
    try:
        data = source.read(MOST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a closed file, or text that is no text
        raise ImageError(f"cannot read the file given: {_line(error)}") from error
    if not isinstance(data, bytes):
        raise ImageError('the file given was opened as text: open it with "rb"')
    return _limited(data, "the file given"), "the file given"


def _read_file(path: Path) -> tuple[bytes, str]:
    name = _line(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder: expected an image file in it")
        with path.open("rb") as file:
            return _limited(file.read(MOST_FILE_BYTES + 1), name), name
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"no file at {name}: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or _line(error)
        raise ImageError(f"cannot read {name}: {reason}") from error


def _limited(data: bytes, name: str) -> bytes:
    if len(data) > MOST_FILE_BYTES:
        raise ImageError(
            f"{name} has more than {MOST_FILE_BYTES // 1_000_000} MB: expected an image; "
            "make it smaller first"
        )
    return data


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Upright RGB over white, of an image of which only the header may have been read."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short < 1:
        raise ImageError(f"{name} has {width} x {height} pixels: expected at least 1 x 1")
    if width * height > MOST_PIXELS or long > MOST_SIDE:
        raise ImageError(
            f"{name} claims {width} x {height} pixels: expected at most "
            f"{MOST_PIXELS // 1_000_000} megapixels and {MOST_SIDE} a side; make it smaller first"
        )
    if long > MOST_ASPECT * short:
        raise ImageError(
            f"{name} has {width} x {height} pixels: expected a longer side of at most "
            f"{MOST_ASPECT} times the shorter; cut it into parts"
        )
    from_file = image.format is not None  # which an upright copy does not say
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"{name} is truncated or damaged: {_line(error)}") from error
    with contextlib.suppress(Exception):  # damaged metadata beside a sound image
        image = ImageOps.exif_transpose(image)
    try:
        return _rgb(image, from_file)
    except _Values as error:
        raise ImageError(f"{name} {error}") from error
    except ValueError as error:
        raise ImageError(
            f"{name} has the mode {image.mode}: expected colours, or shades of grey; convert it "
            "to RGB first"
        ) from error


def _rgb(image: Image.Image, from_file: bool) -> Image.Image:
    """RGB over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_numbers(image, from_file)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


class _Values(ValueError):
    """Nothing says which of the values are black and white."""


def _from_numbers(image: Image.Image, from_file: bool) -> Image.Image:
    """RGB of an image whose shades are numbers: 16 bits, 32 bits or fractions.

    The mode says the range of 16 bits alone. In the others a photograph has 0 to 255 if Pillow made
    it of a grey one, fractions 0 to 1 as arrays have them, and whole numbers 0 to 65,535 if they
    come from a file; so the largest value tells. A file's whole numbers are always 16 bits.

    Raises:
        _Values: If values are below 0, above that, or not finite.
    """
    mode = image.mode
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    whites = [1.0, 255.0] if mode == "F" else [255.0, 65535.0]
    if mode.startswith("I;16") or (mode == "I" and from_file):
        whites = [65535.0]
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:  # which NaN is not either
        raise _Values(
            f"has the mode {mode} with values from {low:g} to {high:g}: expected 0 to "
            f"{' or 0 to '.join(f'{white:g}' for white in whites)}; scale them to 0 to 255 and "
            "convert it to L first"
        )
    shades = np.floor(values * (255 / white) + 0.5).astype(np.uint8)
    return Image.fromarray(shades).convert("RGB")


def content_hash(source: Source) -> str:
    """SHA-256 of an image's size and RGB pixels, 32 hexadecimal digits of it.

    It is the same for the same pixels, whatever format they were stored in.

    Args:
        source: Anything that `open_image` takes.

    Raises:
        ImageError: If it is no image.

    Example:
        >>> content_hash(Image.new("L", (2, 3))) == content_hash(Image.new("RGB", (2, 3)))
        True
    """
    image = open_image(source)
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]


def decode(image: FileRef, data: bytes) -> Image.Image:
    """An image of its bytes, as RGB.

    Raises:
        ImageError: If it is none; the message names the image.
    """
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error


@KINDS.register("image")
class ImageKind:
    """Images."""

    tag = "<image>"
    keys = ("image", "file_name")
    parts = ("image", "image_url")
    endings = ENDINGS

    @staticmethod
    def open(data: bytes) -> Image.Image:
        """As `open_image`."""
        return open_image(data)
