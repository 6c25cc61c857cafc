"""Images for a first look, drawn and not fetched: shapes, with their colour as a group."""

from __future__ import annotations

from PIL import Image, ImageDraw

from isthmus.auditing.data import LabelledImages, labelled_images
from isthmus.evaluation.tasks.drawing import COLOURS, PAPER, SHAPES, draw_shape, generator

SIDE = 224
EACH = 5
"""Images of each shape in each colour."""


def demo_images(seed: int = 0) -> LabelledImages:
    """Circles, squares and triangles, as many in each colour; the colour is a group.

    Example:
        >>> images = demo_images()
        >>> len(images), images.labels, sorted(set(images.groups["colour"]))
        (60, ('circle', 'square', 'triangle'), ['blue', 'green', 'red', 'yellow'])
    """
    rng = generator(seed)
    images, names, colours = [], [], []
    for shape in SHAPES:
        for colour in COLOURS:
            for _ in range(EACH):
                image = Image.new("RGB", (SIDE, SIDE), PAPER)
                side = int(rng.integers(SIDE // 3, SIDE * 3 // 4))
                left, top = (int(rng.integers(4, SIDE - side - 4)) for _ in range(2))
                box = (left, top, left + side, top + side)
                draw_shape(ImageDraw.Draw(image), shape, colour, box)
                images.append(image)
                names.append(shape)
                colours.append(colour)
    return labelled_images(images, names, groups={"colour": colours})
