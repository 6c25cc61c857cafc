"""Open Clip Art and Tux Paint's stamps: drawings for training, photographs for tests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import packages
import words
from PIL import Image

MOST_WORDS = 4
SKIPPED = re.compile(
    r"^(?:geography|logos|shapes|special|buttons)/|^computer/(?!hardware)|^signs_and_symbols/(?!weather)"
    r"|/(?:cards|roadsigns|aiga-symbols|stickmen|smilies|christianity|religion|icons|fantasy)/"
)
"""Folders whose names say nothing that can be seen, or that hold symbols rather than things."""
CREATOR = re.compile(r"<dc:creator.*?</dc:creator>", re.DOTALL)
TITLE = re.compile(r"<dc:title[^>]*>\s*([^<]+)")
TAILS = frozenset(
    ["ganson", "krug", "juliane", "bw", "color", "colour", "alt", "st", "on", "in", "body", "part"]
)
"""What file names end in besides their author: by-names, black and white, cut-off words."""
LEADS = frozenset(["another", "contour", "stylized", "simple", "etiquette", "chesspieces"])
"""Words that file names begin with and that say nothing about the thing."""
UNSAID = frozenset(["people", "icons", "faces", "corner"])
NOT_ENGLISH = frozenset(["rollandin", "olivo", "marrone", "guillou"])
"""Authors whose labels are Italian or French, full of false friends ("cane" is a dog there)."""
NEAR = 3.0
"""Mean difference of signatures, of 255, up to which two drawings are the same art."""
CLAUSE = re.compile(
    r"(?<=[a-z0-9\u201d'\"])\.|[;:!?(\u2013\u2014]|(?<!ripe),"
    r"| (?:called|which|that|who|in|on|with|from|at|for|to|as|by|is|are|was|has|have|can|may|means"
    r"|stands|used|covered|playing|dancing|making|hatched|inside|resembles|lets|carry|carries|ahead"
    r"|or|worn) "
)
"""Where the noun phrase that a stamp's sentence begins with ends."""
ARTICLE = re.compile(r"^(?:an?|the|some|two|this|another|our)\b", re.IGNORECASE)
ADDRESS = re.compile(r"\b(?:the|your)\b", re.IGNORECASE)
"""In a sentence without an article of its own: an order, such as "Enter the cave."."""
UNSAID_STAMPS = re.compile(r"/asl/|/operators/|/dreydl-")
"""Signs whose sentences explain what they mean, and do not say what is to be seen."""
LONGEST_PHRASE = 5


def author_words(svg: str) -> set[str]:
    """The words of the names of who drew an image, from its metadata."""
    names = " ".join(TITLE.findall(" ".join(CREATOR.findall(svg))))
    return set(words.clean(names).split())


def without_author(parts: list[str], author: set[str]) -> list[str]:
    """A file name's words without the author at its end, who may be cut off mid-word there."""
    end = len(parts)
    while end > 1 and (
        len(parts[end - 1]) == 1
        or parts[end - 1] in TAILS
        or any(word.startswith(parts[end - 1]) for word in author)
    ):
        end -= 1
    return parts[:end]


def clipart_name(stem: str, svg: str, net: words.WordNet) -> str | None:
    """The label in a file name; None if it does not end in a thing that can be seen.

    Words after the thing that are no English nouns are left out: "scissors forbici", "dog drawn".
    """
    author = author_words(svg)
    if author & NOT_ENGLISH:
        return None
    label = words.without_article(" ".join(without_author(words.clean_file(stem).split(), author)))
    parts = label.split(" with ")[0].split()
    while len(parts) > 1 and parts[-1] not in net.common and not net.to_singular(parts[-1]):
        parts = parts[:-1]
    while len(parts) > 1 and parts[0] in LEADS:
        parts = parts[1:]
    if not 0 < len(parts) <= MOST_WORDS or parts[-1] in UNSAID or not net.is_thing(parts[-1]):
        return None
    return " ".join(parts)


def openclipart(root: Path) -> Iterator[dict[str, Any]]:
    """Records of the images of things, each once, less what is Tux Paint's too."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    base = packages.fetch("openclipart-svg", root) / "usr/share/openclipart/svg"
    stamps_art = np.stack(list(_stamp_signatures(root)))
    seen: set[str] = set()
    for path in sorted(base.rglob("*.svg")):
        place = path.relative_to(base).with_suffix("").as_posix()
        svg = path.read_text(encoding="utf-8", errors="replace")
        digest = hashlib.sha256(svg.encode()).hexdigest()
        name = clipart_name(path.stem, svg, net)
        if name is None or digest in seen or SKIPPED.search(place):
            continue
        seen.add(digest)
        try:
            image = drawings.render_cropped(svg)
        except ValueError:
            continue
        apart = np.abs(stamps_art - drawings.signature(image)).mean(axis=1).min()
        if drawings.is_blank(image) or apart <= NEAR:
            continue
        yield {
            "image": drawings.save(image, root, f"openclipart/{place}"),
            "name": name,
            "names": words.accepted(name, net, place.split("/")[0]),
            "source": "openclipart",
        }


def _stamps(root: Path) -> Iterator[tuple[Path, Path]]:
    """The stamps and their folder: of a drawing in two formats the scalable one."""
    base = packages.fetch("tuxpaint-stamps-default", root) / "usr/share/tuxpaint/stamps"
    for path in sorted([*base.rglob("*.png"), *base.rglob("*.svg")]):
        twin = path.suffix == ".png" and path.with_suffix(".svg").is_file()
        if not twin and not path.stem.endswith("_mirror"):
            yield path, base


def _stamp_image(path: Path) -> Image.Image | None:
    """A stamp over white, cut to what is drawn; None if it cannot be drawn."""
    if path.suffix == ".png":
        with Image.open(path) as opened:
            return drawings.cropped(opened.convert("RGBA"))
    try:
        return drawings.render_cropped(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        return None


def _stamp_signatures(root: Path) -> Iterator[np.ndarray]:
    for path, _ in _stamps(root):
        image = _stamp_image(path)
        if image is not None:
            yield drawings.signature(image)


def stamp_names(sentence: str, stem: str, domain: str, net: words.WordNet) -> list[str]:
    """The accepted names of a stamp, the canonical one first; empty if there is none.

    The sentence ("A very poisonous lionfish!") gives a noun phrase, the part before any further
    clause. The file name gives a second label. Where it is a thing and ends that phrase, it is
    the canonical name; where the sentence is no noun phrase ("Eat your bread!"), the
    only one.
    """
    parts = [word for word in words.clean_file(stem).split() if len(word) > 1]
    said = {n for word in words.clean(sentence).split() for n in net.numbers(word)}
    heads = [" ".join(parts[:count]) for count in range(len(parts), 0, -1)]
    spoken = [head for head in heads if set(head.split()) <= said - words.PLAIN]
    agreed = [
        head for head in spoken if len(head) > 2 and head in net.common and net.sense(head, domain)
    ]
    clause = CLAUSE.split(sentence)[0]
    phrase = words.without_article(words.clean(clause))
    ends = [h for h in agreed if f" {phrase}".endswith(tuple(f" {n}" for n in net.numbers(h)))]
    misses = agreed and not ends and not ARTICLE.match(sentence)
    if _is_noun_phrase(sentence, clause, net) and not misses:
        if words.HEAD_FIRST.search(phrase) and not words.GROUPS.match(phrase):
            ends = []  # the house of the hunter is no hunter
        names = [*ends[:1], phrase]
    else:
        names = [*agreed[:1], " ".join(parts) or phrase]
    return words.accepted(names[0], net, domain, tuple(names[1:]))


def _is_noun_phrase(sentence: str, clause: str, net: words.WordNet) -> bool:
    """Whether the clause that a sentence begins with names a thing."""
    said = words.clean(clause).split()
    if not 0 < len(said) <= LONGEST_PHRASE + 1:
        return False
    if ARTICLE.match(sentence):
        return True
    order = ADDRESS.search(clause) or sentence[len(clause) :].startswith("!")
    return not order and net.is_thing(said[-1])


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
    for path, base in _stamps(root):
        place = path.relative_to(base)
        text = path.with_suffix(".txt")
        if (
            (place.as_posix() in marked) != photos
            or not text.is_file()
            or UNSAID_STAMPS.search(str(place))
        ):
            continue
        image = _stamp_image(path)
        sentence = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
        names = stamp_names(sentence, path.stem, place.parts[0], net)
        if image is None or not names or drawings.is_blank(image):
            continue
        yield {
            "image": drawings.save(image, root, f"tuxpaint/{place.with_suffix('')}"),
            "name": names[0],
            "names": names,
            "source": "tuxpaint",
            "sentence": sentence,
        }
