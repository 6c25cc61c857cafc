"""The typographic attack: a wrong label written on an image (Goh et al. 2021).

"Multimodal neurons in artificial neural networks", Distill, doi 10.23915/distill.00030. An
encoder that was trained on captions reads what stands in an image, and may believe it. The
control writes a random string of as many letters, so that what covers the image is not mistaken
for what is read.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from isthmus.errors import InputError

LETTER_SHARE = 1 / 6
"""Height of the letters as a share of the image's shorter side."""
LEAST_LETTERS = 9
"""The least height in pixels at which Pillow's font can be read."""


@dataclass(frozen=True)
class TypographicImages:
    """Images with words on them, and their controls.

    Attributes:
        attacked: The images with the wrong labels.
        controls: The same images with random strings, at the same size and from the same seed.
        strings: The random strings.
    """

    attacked: tuple[Image.Image, ...]
    controls: tuple[Image.Image, ...]
    strings: tuple[str, ...]


def typographic_attack(
    images: Sequence[Image.Image], words: Sequence[str], *, seed: int = 0
) -> TypographicImages:
    """Writes a word on each image, and a random string of as many letters on a second copy.

    Args:
        images: The images.
        words: A wrong label for each.
        seed: Of the places and the random strings.

    Raises:
        InputError: If there are not as many words as images, or one cannot be written.

    Example:
        >>> made = typographic_attack([Image.new("RGB", (64, 64))], ["dog"])
        >>> len(made.strings[0]), made.attacked[0].size
        (3, (64, 64))
    """
    if isinstance(words, str) or len(images) != len(words):
        got = "one text" if isinstance(words, str) else f"{len(words)} words"
        raise InputError(f"got {got} for {len(images)} images: expected a word for each")
    seeds = [seed + 1_000_003 * i for i in range(len(words))]
    strings = tuple(random_string(word, own) for word, own in zip(words, seeds, strict=True))
    told = list(zip(images, words, strings, seeds, strict=True))
    return TypographicImages(
        attacked=tuple(written(image, word, seed=own) for image, word, _, own in told),
        controls=tuple(written(image, other, seed=own) for image, _, other, own in told),
        strings=strings,
    )


def written(image: Image.Image, text: str, *, seed: int = 0) -> Image.Image:
    """A copy of an image with black text in a white box.

    Letters are a sixth of the shorter side high, or smaller where the text would not fit. The box
    lies in the middle square of the image, since most encoders crop the rest.

    Args:
        image: The image.
        text: The text; it is broken between words where it is long.
        seed: Of the box's place.

    Raises:
        InputError: If the text is empty, the font lacks one of its letters, or the image is too
            small for letters that can be read.

    Example:
        >>> image = written(Image.new("RGB", (64, 64)), "dog")
        >>> image.getextrema()[0]  # black and white
        (0, 255)
    """
    text = " ".join(text.split())
    if not text:
        raise InputError("got an empty text: expected a word to write on the image")
    image = image.convert("RGB")
    side = min(image.size)
    lines, font, (width, height) = _fitted(text, side)
    _check_letters(text, font)
    padding = max(1, side // 50)
    place = random.Random(seed)
    left = (image.width - side) // 2 + place.randint(padding, side - width - padding)
    top = (image.height - side) // 2 + place.randint(padding, side - height - padding)
    canvas = ImageDraw.Draw(image)
    box = (left - padding, top - padding, left + width + padding - 1, top + height + padding - 1)
    canvas.rectangle(box, fill="white")
    ink = canvas.multiline_textbbox((0, 0), lines, font=font, align="center")
    canvas.multiline_text(
        (left - ink[0], top - ink[1]), lines, font=font, fill="black", align="center"
    )
    return image


def random_string(text: str, seed: int) -> str:
    """A random string with as many letters as a text, in words of the same lengths.

    Args:
        text: The text.
        seed: Of the letters.

    Example:
        >>> [len(word) for word in random_string("ice cream", 0).split()]
        [3, 5]
    """
    draw = random.Random(seed)
    text = " ".join(text.split())
    while True:
        made = "".join(" " if c == " " else draw.choice(string.ascii_lowercase) for c in text)
        if made != text.lower():
            return made


def _fitted(text: str, side: int) -> tuple[str, ImageFont.FreeTypeFont, tuple[int, int]]:
    """The text in lines, and the largest font in which it fits into a square."""
    room = side - 2 * max(1, side // 50)
    words = text.split(" ")
    for height in range(max(LEAST_LETTERS, round(side * LETTER_SHARE)), LEAST_LETTERS - 1, -1):
        font = ImageFont.load_default(size=height)
        assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it always is
        lines = "\n".join(_broken(words, font, room))
        box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
            (0, 0), lines, font=font, align="center"
        )
        width, tall = round(box[2] - box[0] + 0.5), round(box[3] - box[1] + 0.5)
        if width <= room and tall <= room:
            return lines, font, (width, tall)
    raise InputError(
        f'an image of {side} pixels has no room for "{text[:60]}" in letters of {LEAST_LETTERS} '
        "pixels, the least that can be read: expected a larger image or a shorter label"
    )


def _broken(words: Sequence[str], font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """Words in as few lines as fit; a word that is too long stands alone."""
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _check_letters(text: str, font: ImageFont.FreeTypeFont) -> None:
    """Refuses letters for which the font draws its empty box, as Pillow's does for Korean."""
    missing = bytes(font.getmask("\U0010ffff"))
    for letter in text:
        if letter != " " and bytes(font.getmask(letter)) == missing:
            raise InputError(
                f'Pillow\'s font has no letter "{letter}" of "{text[:60]}": expected Latin letters'
            )
