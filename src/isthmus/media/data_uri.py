"""Images that stand in a text, as `data:` addresses (RFC 2397). Pure: no torch."""

from __future__ import annotations

import base64
import binascii
import re

from isthmus.errors import ImageError

TYPES = ("png", "jpeg", "jpg", "webp", "gif", "bmp", "x-ms-bmp")
_HEAD = re.compile(
    rf"data:image/(?:{'|'.join(TYPES)})"  # then parameters, of which none matters to an image
    r"(?:;[\w!#$&.+^-]{1,127}=(?:[\w!#$%&'*.+^`|~-]{1,255}|\"[^\",]{0,255}\"))*"
    r";base64,",
    re.IGNORECASE,
)
MOST_HEAD = 2_000
"""Characters before the comma; an address without one may be megabytes long."""


class DataURIError(ImageError):
    """A text is no `data:` address of an image, or its base64 is damaged.

    Args:
        message: What was got, what was expected, how to mend it.
        malformed: Whether it is such an address, with malformed base64.
    """

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


def is_data_uri(text: str) -> bool:
    """Whether a text is a `data:` address, of whatever.

    Example:
        >>> is_data_uri("data:,hello"), is_data_uri("data/cat.png")
        (True, False)
    """
    return text[:5].lower() == "data:"


def bytes_of(uri: str) -> bytes:
    r"""The bytes of an image's `data:` address, strictly read.

    Raises:
        DataURIError: If it is no such address, or not base64 to the letter.

    Example:
        >>> bytes_of("data:image/png;charset=utf-8;base64,AAEC")
        b'\x00\x01\x02'
    """
    head = _HEAD.match(uri[:MOST_HEAD])
    if head is None:
        raise DataURIError(
            'expected an image as "data:image/png;base64,..." (png, jpeg, webp, gif or bmp)'
        )
    try:
        written = uri[head.end() :].encode("ascii")
        data = base64.b64decode(written, validate=True)
        if base64.b64encode(data) != written:  # more padding than there is to pad, stray bits
            raise binascii.Error
    except (binascii.Error, UnicodeEncodeError):
        raise DataURIError(
            "the image's base64 is malformed: expected A-Z, a-z, 0-9, + and /, padded with =, "
            "without line breaks",
            malformed=True,
        ) from None
    if not data:
        raise DataURIError("the image is empty: expected its bytes", malformed=True)
    return data


def data_uri(image: bytes) -> str:
    """An image file as the server reads it; which format it is, its bytes tell."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
