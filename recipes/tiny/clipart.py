"""Open Clip Art and Tux Paint's stamps: drawings for training, photographs for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import packages
import words
from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # these archives are trusted, and hold pictures of 29,700 px
CLIPART_FOLDERS = (
    "animals",
    "food",
    "plants",
    "transportation",
    "tools",
    "recreation",
    "office",
    "electronics",
    "household",
    "buildings",
    "clothing",
    "people",
    "computer/hardware",
    "education",
    "science",
)
# Names of people who drew, which file names end in, are cut at the first word WordNet lacks
MOST_WORDS = 3


def _clipart_name(stem: str, net: words.WordNet) -> str | None:
    """The label in a file name: its leading words that WordNet knows as a noun; None if none."""
    parts = words.clean(stem).split()
    for count in range(min(MOST_WORDS, len(parts)), 0, -1):
        name = " ".join(parts[:count])
        if len(name) > 2 and net.synonyms(name):
            return name
    return None


def openclipart(root: Path) -> Iterator[dict[str, Any]]:
    """Records of the folders that show things, less what is Tux Paint's too."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    base = packages.fetch("openclipart-png", root) / "usr/share/openclipart/png"
    for path in sorted(base.rglob("*.png")):
        place = str(path.relative_to(base))
        if not place.startswith(CLIPART_FOLDERS) or "tux_paint" in place or "aiga" in place:
            continue
        name = _clipart_name(path.stem, net)
        if name is None:
            continue
        with Image.open(path) as picture:
            picture.draft("RGB", (drawings.SIDE, drawings.SIDE))
            flat = drawings.over_white(picture)
        if drawings.is_blank(flat):
            continue
        yield {
            "image": drawings.save(flat, root, f"openclipart/{place.removesuffix('.png')}"),
            "name": name,
            "names": words.accepted(name, net),
            "source": "openclipart",
        }


def _stamp_name(sentence: str, stem: str) -> str:
    """What a stamp's English sentence calls it: the noun phrase before any further clause."""
    text = re.split(
        r"[.,;:!?(\u2013\u2014]| called | which | that | in | on | with | from | at ", sentence
    )[0]
    name = words.clean(text)
    return name if 0 < len(name.split()) <= 4 else words.clean(stem)


def stamps(root: Path, photo_list: Path | None, *, photos: bool) -> Iterator[dict[str, Any]]:
    """Records of the drawings or of the photographs.

    Args:
        root: The data folder.
        photo_list: JSON list of the stamps that are photographs; without it none can be told
            from a drawing, and so none is used for training.
        photos: Which of the two.
    """
    if photo_list is None:
        return
    marked = set(json.loads(photo_list.read_text()))
    net = words.wordnet(packages.fetch("wordnet-base", root))
    base = packages.fetch("tuxpaint-stamps-default", root) / "usr/share/tuxpaint/stamps"
    for path in sorted([*base.rglob("*.png"), *base.rglob("*.svg")]):
        place = str(path.relative_to(base))
        text = path.with_suffix(".txt")
        if (place in marked) != photos or path.stem.endswith("_mirror") or not text.is_file():
            continue
        sentence = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
        if path.suffix == ".svg":
            try:
                picture = drawings.render(path.read_text(encoding="utf-8"))
            except (ValueError, UnicodeDecodeError):
                continue
        else:
            with Image.open(path) as opened:
                picture = drawings.over_white(opened)
        name = _stamp_name(sentence, path.stem)
        if not name or drawings.is_blank(picture):
            continue
        also = words.accepted(words.clean(path.stem), net)
        yield {
            "image": drawings.save(picture, root, f"tuxpaint/{place.rsplit('.', 1)[0]}"),
            "name": name,
            "names": list(dict.fromkeys([*words.accepted(name, net), *also])),
            "source": "tuxpaint",
            "sentence": sentence,
        }
