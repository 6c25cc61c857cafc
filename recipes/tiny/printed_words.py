"""Images of one printed word of two to eight letters, with where each letter is.

    python recipes/tiny/printed_words.py --out FOLDER --sheet SHEET.png

draws a contact sheet of each split, to look at; `prepare.py` makes the records.

A word is a noun of WordNet whose first sense is no person, a made-up string of letters, a number,
or a code of capitals and digits. A hash of it, whatever its letters' case, decides to which split a
word belongs, and typefaces are parted by family (`fonts.py`): no word and no family of dev or test
is printed for training. Letters that a reader cannot tell apart without a context (capital I and
small l, O and 0) are left out of codes, and I and l of made-up strings too.

Every choice comes from the seed, and image `i` of a split is the same whatever the count.
"""

from __future__ import annotations

import argparse
import hashlib
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import drawings
import fonts
import numpy as np
import packages
import words
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = drawings.SIDE
COUNTS = {"train": 6_000, "dev": 400, "test": 400}
SEEDS = {"train": 0, "dev": 1, "test": 2}
SHORTEST, LONGEST = 2, 8
QUESTIONS = (
    "What does the text say?",
    "What is written here?",
    "What does it say?",
    "Which word is printed in the picture?",
    "Read the text in the picture.",
    "What can you read in the picture?",
)
"""Training draws from all; dev and test ask the first."""
KINDS = {"dictionary": 0.6, "made-up": 0.2, "syllables": 0.08, "number": 0.08, "code": 0.04}
"""What is printed, with the share of each."""
CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I, which is a small l, and no O, which is a 0
CODE_DIGITS = "23456789"
PERSON = "18"
"""WordNet's lexicographer file of persons: such nouns hold its insults."""
CONTRAST = 3.0
"""The least contrast between letters and ground, by WCAG's ratio of luminances."""
MARGIN = 0.02
"""No word is nearer to an edge of the picture than this share of it."""
FINER = 2
"""Drawn this many times larger, then shrunk: smooth edges at any rotation."""
Colour = tuple[int, int, int]
Random = np.random.Generator


def split_of(word: str) -> str:
    """The split that a word belongs to, whatever its letters' case."""
    share = hashlib.sha256(word.lower().encode()).digest()[0] % 16
    return {0: "dev", 1: "test"}.get(share, "train")


@cache
def nouns(root: Path, split: str) -> list[str]:
    """The dictionary words of a split, sorted."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    return sorted(
        word
        for word in net.common
        if SHORTEST <= len(word) <= LONGEST
        and word.isascii()
        and word.isalpha()
        and split_of(word) == split
        and word in net.senses
        and net.synsets[net.senses[word][0]][0] != PERSON
    )


def _cased(word: str, random: Random) -> str:
    """A word in small letters, with a capital, or in capitals."""
    return str(random.choice([word, word.capitalize(), word.upper()], p=[0.45, 0.25, 0.3]))


def _made_up(kind: str, random: Random) -> str:
    """A string of a kind that is in no dictionary, of any split."""
    length = int(random.integers(SHORTEST, LONGEST + 1))
    if kind == "number":
        return "".join(random.choice(list(string.digits), length))
    if kind == "code":
        split = int(random.integers(1, length))
        letters = "".join(random.choice(list(CAPITALS), split))
        return letters + "".join(random.choice(list(CODE_DIGITS), length - split))
    if kind == "syllables":
        consonants, vowels = list("bcdfghjkmnprstvwz"), list("aeou")
        pairs = [random.choice(consonants) + random.choice(vowels) for _ in range(4)]
        return _cased("".join(pairs)[:length], random)
    return _cased("".join(random.choice(list("abcdefghjkmnopqrstuvwxyz"), length)), random)


def word_for(split: str, nouns: list[str], random: Random) -> tuple[str, str]:
    """A word that belongs to a split, and its kind."""
    kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "dictionary":
        return _cased(nouns[int(random.integers(len(nouns)))], random), kind
    while True:
        text = _made_up(kind, random)
        if split_of(text) == split:
            return text, kind


def luminance(colour: Colour) -> float:
    """WCAG's relative luminance of an sRGB colour."""
    values = np.asarray(colour) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: Colour, other: Colour) -> float:
    """The contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _colour(random: Random) -> Colour:
    """Any colour; black, white and greys more often than chance has them."""
    if random.random() < 0.35:
        grey = int(random.choice([0, 20, 60, 190, 235, 255]))
        return (grey, grey, grey)
    red, green, blue = (int(v) for v in random.integers(0, 256, 3))
    return (red, green, blue)


def _ink(grounds: list[Colour], random: Random) -> Colour:
    """A colour that can be read on all of the grounds."""
    for _ in range(50):
        colour = _colour(random)
        if all(contrast(colour, ground) >= CONTRAST for ground in grounds):
            return colour
    dark, light = (0, 0, 0), (255, 255, 255)
    return max((dark, light), key=lambda c: min(contrast(c, g) for g in grounds))


def _ground(random: Random) -> tuple[Image.Image, list[Colour]]:
    """A ground and the colours that it has: plain, a gradient, or blotches."""
    side = SIDE * FINER
    first = _colour(random)
    way = str(random.choice(["plain", "gradient", "blotches"], p=[0.5, 0.25, 0.25]))
    if way == "plain":
        return Image.new("RGB", (side, side), first), [first]
    moved = np.clip(np.asarray(first) + random.integers(-45, 46, 3), 0, 255)
    second = (int(moved[0]), int(moved[1]), int(moved[2]))
    if way == "gradient":
        corners = random.random((2, 2))
    else:
        corners = random.random((int(random.integers(4, 14)),) * 2)
    mixed = np.asarray(first) + corners[..., None] * (np.asarray(second) - np.asarray(first))
    small = Image.fromarray(mixed.round().astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC), [first, second]


@dataclass(frozen=True)
class Lettering:
    """A word set in a typeface.

    Attributes:
        mask: What is ink, as an image of one channel.
        boxes: (N, 4) left, top, right, bottom of each letter in it.
    """

    mask: Image.Image
    boxes: NDArray[np.float64]


def lettering(text: str, font: ImageFont.FreeTypeFont) -> Lettering:
    """Sets a word, letter after letter with the typeface's own kerning."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    boxes = []
    for i, letter in enumerate(text):
        start = font.getlength(text[: i + 1]) - font.getlength(letter)
        x0, y0, x1, y1 = font.getbbox(letter)
        boxes.append((start + x0 - left, y0 - top, start + x1 - left, y1 - top))
    return Lettering(mask, np.asarray(boxes))


def _fitting(text: str, file: Path, random: Random) -> Lettering:
    """A word in a size drawn at random: the longer it is, the wider it must be to be read."""
    side = SIDE * FINER
    width = side * random.uniform(min(0.85, 0.16 + 0.075 * len(text)), 0.9)
    at_100 = ImageFont.truetype(str(file), 100, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = at_100.getbbox(text)
    size = 100 * min(width / (right - left), 0.55 * side / (bottom - top))
    font = ImageFont.truetype(str(file), round(size), layout_engine=ImageFont.Layout.BASIC)
    return lettering(text, font)


def _turned(
    boxes: NDArray[np.float64], size: tuple[int, int], turned: tuple[int, int], degrees: float
) -> NDArray[np.float64]:
    """Upright boxes around boxes that were turned with their image, about its middle."""
    angle = np.deg2rad(-degrees)  # an image's rows grow downward
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - np.asarray(size) / 2
    moved = corners @ turn.T + np.asarray(turned) / 2
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def picture(text: str, file: Path, random: Random) -> tuple[Image.Image, list[list[int]]]:
    """An image of a word, and the box of each letter in its pixels.

    Args:
        text: The word.
        file: The font file.
        random: Where every choice comes from.
    """
    side = SIDE * FINER
    ground, colours = _ground(random)
    set_word = _fitting(text, file, random)
    degrees = float(np.clip(random.normal(0, 4), -12, 12))
    mask = set_word.mask.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    boxes = _turned(set_word.boxes, set_word.mask.size, mask.size, degrees)
    edge = round(MARGIN * side)
    if max(mask.size) > side - 2 * edge:
        share = (side - 2 * edge) / max(mask.size)
        smaller = (int(mask.width * share), int(mask.height * share))
        mask, boxes = mask.resize(smaller, Image.Resampling.LANCZOS), boxes * share
    x, y = (int(random.integers(edge, side - edge - extent + 1)) for extent in mask.size)
    if random.random() < 0.3:
        card = _colour(random)
        colours = [card]
        _draw_card(ground, (x, y, x + mask.width, y + mask.height), card, random)
    ground.paste(Image.new("RGB", mask.size, _ink(colours, random)), (x, y), mask)
    if random.random() < 0.2:
        ground = ground.filter(ImageFilter.GaussianBlur(FINER * random.uniform(0.3, 0.9)))
    boxes = (boxes + np.asarray((x, y, x, y))) / FINER
    image = ground.resize((SIDE, SIDE), Image.Resampling.BOX)
    return image, np.clip(boxes.round(), 0, SIDE).astype(int).tolist()


def _draw_card(
    ground: Image.Image, box: tuple[int, int, int, int], card: Colour, random: Random
) -> None:
    """Draws a card behind a word, sometimes with a frame, as signs have it."""
    left, top, right, bottom = box
    edge = random.uniform(0.03, 0.12, 2) * ground.width
    area = (left - edge[0], top - edge[1], right + edge[0], bottom + edge[1])
    radius = float(random.choice([0, 0, 12, 40]))
    frame = _ink([card], random) if random.random() < 0.4 else None
    ImageDraw.Draw(ground).rounded_rectangle(area, radius, fill=card, outline=frame, width=6)


def printed(root: Path, split: str, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The records of a split; its images are saved as they come.

    Args:
        root: The data folder.
        split: One of `fonts.SPLITS`.
        count: How many; None takes `COUNTS`.
    """
    listed = nouns(root, split)
    files = [(face, face.file(root)) for face in fonts.faces(split)]
    seen: set[str] = set()
    for index in range(COUNTS[split] if count is None else count):
        random = np.random.default_rng([SEEDS[split], index])
        text, kind = word_for(split, listed, random)
        while split != "train" and text.lower() in seen:
            text, kind = word_for(split, listed, random)
        seen.add(text.lower())
        face, file = files[index % len(files)]
        image, boxes = picture(text, file, random)
        asked = int(random.integers(len(QUESTIONS))) if split == "train" else 0
        yield {
            "image": drawings.save(image, root, f"printed/{split}/{index:05d}"),
            "question": QUESTIONS[asked],
            "answer": text,
            "source": "printed",
            "kind": kind,
            "font": face.name,
            "boxes": boxes,
        }


def main() -> None:
    """Draws a contact sheet of each split, letters framed in every second row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, required=True)
    options = parser.parse_args()
    across, down = 7, 6
    sheet = Image.new("RGB", (across * SIDE, down * SIDE))
    for row in range(down):
        split = fonts.SPLITS[row // 2]
        for column, record in enumerate(printed(options.out.resolve(), split, across)):
            image = Image.open(options.out / record["image"])
            for box in record["boxes"] if row % 2 else ():
                ImageDraw.Draw(image).rectangle(box, outline="red")
            sheet.paste(image, (column * SIDE, row * SIDE))
    sheet.save(options.sheet)


if __name__ == "__main__":
    main()
