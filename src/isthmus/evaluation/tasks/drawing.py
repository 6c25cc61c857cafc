"""Images for generated tasks, drawn with Pillow from a seeded generator. Pure: no torch."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (40, 150, 60),
    "yellow": (240, 200, 20),
}
SHAPES = ("circle", "square", "triangle")
PAPER = (250, 250, 250)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for each item: item 7 is the same whether 8 or 1000 are made."""
    return np.random.default_rng([seed, *stream])


def chosen(rng: np.random.Generator, options: tuple[str, ...], count: int) -> list[str]:
    """As many different ones of some options, in random order."""
    return [options[i] for i in rng.permutation(len(options))[:count]]


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, colour: str, box: tuple[int, int, int, int]
) -> None:
    """Draws a circle, square or triangle into a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    fill = COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=fill)


def draw_grid(cells: list[list[tuple[str, str] | None]], size: int) -> Image.Image:
    """A square image of (colour, shape) cells; None stays empty.

    Args:
        cells: Rows of cells.
        size: Side in pixels.
    """
    image = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(image)
    step = size // len(cells)
    margin = max(1, step // 8)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            if cell is not None:
                left, top = c * step + margin, r * step + margin
                right, bottom = (c + 1) * step - margin - 1, (r + 1) * step - margin - 1
                draw_shape(draw, cell[1], cell[0], (left, top, right, bottom))
    return image


def draw_text(text: str, size: tuple[int, int], height: int) -> Image.Image:
    """Black text in the middle of a white image, in Pillow's own font.

    Args:
        text: One line.
        size: Width and height in pixels.
        height: Of the letters, in pixels; made smaller where the line is too wide.
    """
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(height)
    wide = draw.textlength(text, font=font)
    if wide > 0.92 * size[0]:
        font = ImageFont.load_default(max(6, int(height * 0.92 * size[0] / wide)))
    draw.text((size[0] // 2, size[1] // 2), text, fill="black", font=font, anchor="mm")
    return image


class Creature:
    """A made-up thing: a blob of its own outline, colours and spots, drawn from many sides.

    Args:
        rng: Where its looks are drawn from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.radii = rng.uniform(0.45, 1.0, size=int(rng.integers(5, 10)))
        self.body = tuple(int(v) for v in rng.integers(30, 226, size=3))
        self.spots = tuple(255 - v if abs(255 - 2 * v) > 60 else (v + 128) % 256 for v in self.body)
        self.places = rng.uniform(-0.35, 0.35, size=(int(rng.integers(1, 5)), 2))

    def draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        """One view of it: turned, moved and scaled a little, on paper of some brightness.

        Args:
            rng: Where the view is drawn from.
            size: Side in pixels.
        """
        shade = int(rng.integers(225, 256))
        image = Image.new("RGB", (size, size), (shade, shade, shade))
        draw = ImageDraw.Draw(image)
        turn = rng.uniform(-0.35, 0.35)
        scale = size * rng.uniform(0.34, 0.44)
        x, y = size * rng.uniform(0.45, 0.55, size=2)
        outline = [
            (
                x + scale * r * cos(turn + 2 * pi * i / len(self.radii)),
                y + scale * r * sin(turn + 2 * pi * i / len(self.radii)),
            )
            for i, r in enumerate(self.radii)
        ]
        draw.polygon(outline, fill=self.body)
        for across, down in self.places:
            a = x + scale * (across * cos(turn) - down * sin(turn))
            b = y + scale * (across * sin(turn) + down * cos(turn))
            r = scale * 0.13
            draw.ellipse((a - r, b - r, a + r, b + r), fill=self.spots)
        return image
