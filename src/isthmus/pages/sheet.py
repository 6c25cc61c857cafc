"""A contact sheet: pictures in a grid, a few lines of text below each. Pure: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from isthmus.errors import InputError
from isthmus.images import Source, open_picture

CELL = 200
"""Side of a picture's square, in pixels."""
MARGIN = 14
LINE = 18
MOST = 400
"""Most pictures on a sheet: beyond it nobody finds anything."""
WHITE, DARK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def contact_sheet(
    pictures: Sequence[Source], lines: Sequence[Sequence[str]], *, columns: int | None = None
) -> Image.Image:
    """Pictures in a grid, the first line below each in black and the others in grey.

    Args:
        pictures: Anything that `open_picture` takes.
        lines: Lines of text for each picture; one that is too long for its place is shortened.
        columns: Pictures in a row; None for about a third more columns than rows.

    Raises:
        InputError: If there is no picture or more than 400.
        PictureError: If one is no picture.

    Example:
        >>> contact_sheet([Image.new("RGB", (9, 9))], [["cat", "97% cat"]]).size
        (228, 278)
    """
    if not 1 <= len(pictures) <= MOST:
        raise InputError(f"got {len(pictures)} pictures for a sheet: expected 1 to {MOST}")
    columns = columns or min(len(pictures), max(1, round(math.sqrt(len(pictures) * 4 / 3))))
    rows = math.ceil(len(pictures) / columns)
    most = max(len(many) for many in lines)
    width, height = CELL + MARGIN, CELL + most * LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), WHITE)
    draw = ImageDraw.Draw(sheet)
    bold, plain = _font(15), _font(13)
    for i, (source, texts) in enumerate(zip(pictures, lines, strict=True)):
        x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
        picture = ImageOps.contain(open_picture(source), (CELL, CELL), Image.Resampling.LANCZOS)
        # Standing on the text, so that a caption is never far from its picture
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + CELL - picture.height))
        for k, text in enumerate(texts):
            font, colour = (bold, DARK) if k == 0 else (plain, GREY)
            draw.text((x, y + CELL + 3 + k * LINE), _fitted(draw, text, font), colour, font)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or its bitmap where it was built without FreeType."""
    return ImageFont.load_default(size)


def _fitted(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """The text, or as much of it as there is place for."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= CELL:
        return text
    while text and draw.textlength(f"{text}...", font) > CELL:
        text = text[:-1]
    return f"{text}..."
