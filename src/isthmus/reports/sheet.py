"""A contact sheet: images in a grid, a few lines of text below each. Pure: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from isthmus.errors import InputError
from isthmus.media.image import Source, open_image

CELL = 200
"""Side of an image's square, in pixels."""
MARGIN = 14
CAPTION = 3
"""Between an image and its first line."""
LINE = 18
MOST = 400
"""Most images on a sheet: beyond it nobody finds anything."""
WHITE, DARK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def contact_sheet(
    images: Sequence[Source], lines: Sequence[Sequence[str]], *, columns: int | None = None
) -> Image.Image:
    """Images in a grid, the first line below each in black and the others in grey.

    Args:
        images: Anything that `open_image` takes.
        lines: Lines of text for each image; one that is too long for its place is shortened.
        columns: Images in a row; None for about a third more columns than rows.

    Raises:
        InputError: If there is no image or more than 400.
        ImageError: If one is no image.

    Example:
        >>> contact_sheet([Image.new("RGB", (9, 9))], [["cat", "97% cat"]]).size
        (228, 267)
    """
    if not 1 <= len(images) <= MOST:
        raise InputError(f"got {len(images)} images for a sheet: expected 1 to {MOST}")
    columns = columns or min(len(images), max(1, round(math.sqrt(len(images) * 4 / 3))))
    fitted = [
        ImageOps.contain(open_image(source), (CELL, CELL), Image.Resampling.LANCZOS)
        for source in images
    ]
    most = max(len(many) for many in lines)
    rows = [fitted[i : i + columns] for i in range(0, len(fitted), columns)]
    heights = [max(p.height for p in row) for row in rows]
    below = CAPTION + most * LINE + MARGIN
    size = (columns * (CELL + MARGIN) + MARGIN, sum(heights) + len(rows) * below + MARGIN)
    sheet = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(13)
    texts, y = iter(lines), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            x = MARGIN + column * (CELL + MARGIN)
            # Standing on the text, so that a caption is never far from its image
            sheet.paste(image, (x + (CELL - image.width) // 2, y + height - image.height))
            for k, text in enumerate(next(texts)):
                font, colour = (bold, DARK) if k == 0 else (plain, GREY)
                place = (x, y + height + CAPTION + k * LINE)
                draw.text(place, _fitted(draw, text, font), colour, font)
        y += height + below
    return sheet


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
