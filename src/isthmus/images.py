"""Opening pictures that strangers made. Pure: no torch.

The size is read from the header before anything is decoded, only known formats are opened, EXIF
orientation is applied, transparency is laid over white, and a truncated file is refused. What
comes out is always an RGB picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import socket
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from isthmus.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 40_000_000
"""Largest picture that is decoded: 40 megapixels, 120 MB as RGB."""
MOST_BYTES = 20_000_000
"""Largest file that is fetched from an address."""
TIMEOUT = 10.0
"""Seconds to wait for an address."""

Source = str | Path | bytes | BinaryIO | Image.Image


def _stream(source: Source) -> tuple[BinaryIO, str]:
    """A readable stream and what to call it in a message."""
    if isinstance(source, bytes):
        return io.BytesIO(source), f"the {len(source)} bytes given"
    if not isinstance(source, (str, Path)):
        if isinstance(source, Image.Image) or not hasattr(source, "read"):
            raise PictureError(f"got {type(source).__name__}: expected a path, bytes or a file")
        return io.BytesIO(source.read()), "the file given"
    path = Path(source)
    if path.is_dir():
        raise PictureError(f"{path} is a folder: expected a picture file in it")
    try:
        return io.BytesIO(path.read_bytes()), str(path)
    except FileNotFoundError:
        raise PictureError(f"no file at {path}: check the path") from None
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror or error}") from error


def open_picture(source: Source) -> Image.Image:
    """Opens a picture as RGB.

    Args:
        source: A path, the bytes of a file, a binary file, or a PIL picture.

    Returns:
        An RGB picture, upright, transparency laid over white; the first frame of an animation.

    Raises:
        PictureError: If it is missing, empty, of another format, too large or truncated.

    Example:
        >>> open_picture(Image.new("RGBA", (2, 1))).getpixel((0, 0))
        (255, 255, 255)
    """
    if isinstance(source, Image.Image):
        return _flatten(source, "the picture given")
    stream, name = _stream(source)
    if not stream.getbuffer().nbytes:  # type: ignore[attr-defined]
        raise PictureError(f"{name} is empty (0 bytes): expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(
            f"{name} is no picture of a known format: expected one of {', '.join(FORMATS)}"
        ) from None
    except Image.DecompressionBombError as error:  # Pillow looks at the header first, as we do
        raise PictureError(
            f"{name} is too large: {error}; expected at most {MOST_PIXELS // 1_000_000} megapixels"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"{name} cannot be opened: {error}") from error
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise PictureError(
            f"{name} claims {width} x {height} pixels: expected at most "
            f"{MOST_PIXELS // 1_000_000} megapixels; make it smaller first"
        )
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name} is truncated or damaged: {error}") from error
    return _flatten(picture, name)


def _flatten(picture: Image.Image, name: str) -> Image.Image:
    """Upright RGB over white."""
    damaged = (OSError, ValueError, SyntaxError, KeyError, TypeError, ZeroDivisionError)
    with contextlib.suppress(*damaged):  # damaged metadata may stand beside a sound picture
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I;16", "I", "F")):
        low, high = 0.0, 65535.0 if picture.mode != "F" else 1.0
        table = picture.convert("F").point(lambda v: (v - low) * (255.0 / (high - low)))
        return table.convert("L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise PictureError(f"{name} has the mode {picture.mode}: expected a photograph") from error


def content_hash(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, 32 hexadecimal digits."""
    rgb = picture.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()[:32]


def is_url(text: str) -> bool:
    """Whether a string is an http or https address and not a path."""
    return text.startswith(("http://", "https://"))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to an address that was never checked."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _refuse_private(url: str) -> None:
    """Raises unless every address behind the host is a public one."""
    parts = urllib.parse.urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname or "", parts.port or 443)
    except (OSError, ValueError, UnicodeError) as error:
        raise PictureError(f"cannot find the host of {url}: {error}") from error
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise PictureError(
                f"{url} leads to {address[0]}, which is not a public address: download the "
                "picture yourself and pass the file"
            )


def fetch_url(url: str) -> bytes:
    """The bytes behind a public http(s) address.

    Private, loopback and link-local addresses are refused, redirects are not followed, size and
    time are limited. It is meant for a person's own command line; a server must not call it.

    Raises:
        PictureError: If the address is refused, or does not answer with at most 20 MB.
    """
    if not is_url(url):
        raise PictureError(f"{url} is no http(s) address")
    _refuse_private(url)
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot fetch {url}: {error}") from error
    if len(data) > MOST_BYTES:
        raise PictureError(f"{url} is larger than {MOST_BYTES // 1_000_000} MB")
    return data
