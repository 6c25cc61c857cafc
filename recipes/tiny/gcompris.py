"""GCompris: word drawings for training, photographs for tests, read from Qt resource files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import packages
import words
from PIL import Image

PHOTO_FILES = (
    "explore_farm_animals",
    "explore_world_animals",
    "explore_monuments",
    "explore_world_music",
    "categorization",
)
_DIRECTORY, _COMPRESSED = 2, 1


def resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a Qt resource file (`rcc --binary`).

    The header gives the offsets of three tables; the tree table has one node per file or folder
    (name offset, flags, then first child and count, or locale and data offset).
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        return
    version, tree, payload, names = struct.unpack(">iiii", data[4:20])
    node_size = 22 if version >= 2 else 14

    def name_of(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(index: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", data, at)
        name = f"{prefix}/{name_of(name_offset)}" if index else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, name)
            return
        (offset,) = struct.unpack_from(">I", data, at + 10)
        (size,) = struct.unpack_from(">I", data, payload + offset)
        content = data[payload + offset + 4 : payload + offset + 4 + size]
        yield name, zlib.decompress(content[4:]) if flags & _COMPRESSED else content

    yield from walk(0, "")


def _files(root: Path) -> Path:
    return packages.fetch("gcompris-qt-data", root) / "usr/share/gcompris-qt/rcc"


def _record(content: bytes, place: str, label: str, net: words.WordNet, root: Path) -> Any:
    name = words.clean(label)
    if place.endswith(".svg"):
        picture = drawings.render(content.decode("utf-8"))
    else:
        with Image.open(io.BytesIO(content)) as opened:
            picture = drawings.over_white(opened)
    if not name or drawings.is_blank(picture):
        return None
    return {
        "image": drawings.save(picture, root, f"gcompris{place.rsplit('.', 1)[0]}"),
        "name": name,
        "names": words.accepted(name, net),
        "source": "gcompris",
    }


def word_drawings(root: Path) -> Iterator[dict[str, Any]]:
    """Drawings of the words that children learn."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for path in sorted(_files(root).glob("*.rcc")):
        for place, content in resources(path):
            if "/words" in place and place.endswith((".png", ".svg", ".webp", ".jpg")):
                record = _record(content, place, Path(place).stem, net, root)
                if record:
                    yield record


def photographs(root: Path) -> Iterator[dict[str, Any]]:
    """Photographs of animals, monuments, musicians and things, named by their files."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for stem in PHOTO_FILES:
        for place, content in resources(_files(root) / f"{stem}.rcc"):
            photo = place.endswith((".jpg", ".jpeg", ".webp"))
            if photo or ("/resource/images/" in place and place.endswith(".png")):
                record = _record(content, place, Path(place).stem, net, root)
                if record:
                    yield record
