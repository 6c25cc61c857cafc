"""GCompris: word drawings for training, photographs for tests, read from Qt resource files."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import packages
import words
from PIL import Image

EXPLORED = ("explore_farm_animals", "explore_world_animals", "explore_monuments")
TITLES = re.compile(
    r'"title":\s*qsTr\("(?P<title>[^"]+)"\).*?"image2":\s*"qrc:(?P<image>[^"]+)"', re.DOTALL
)
"""Titles and photographs in an exploration's boards."""
UNSEEN = re.compile(r"/images/(?:alphabets|numbers|oddEven|colors|shapes)/|buffetset")
"""Photographs of letters and numbers as such, and one whose name is no word."""
WHOLE = {
    "solar": "solar panel",
    "geothermal": "geothermal power plant",
    "plier": "pliers",
    "tweezer": "tweezers",
    "bulb": "light bulb",
    "blackslate": "blackboard",
    "spray": "spray bottle",
    "burj": "burj khalifa",
    "screw driver": "screwdriver",
    "us capitol": "capitol",
    "empire state": "empire state building",
}
"""Names that are cut short in file names."""
PHOTOS = (".webp", ".jpg", ".png")
NOT_WORDS = ("background", "wordsgame")
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


def _image(content: bytes, place: str) -> Image.Image:
    """A resource over white."""
    if place.endswith(".svg"):
        return drawings.render(content.decode("utf-8"))
    with Image.open(io.BytesIO(content)) as opened:
        return drawings.over_white(opened)


def _record(
    image: Image.Image, place: str, name: str, domain: str, net: words.WordNet, root: Path
) -> dict[str, Any]:
    short = place.removeprefix("/gcompris/src/activities/").rsplit(".", 1)[0]
    return {
        "image": drawings.save(image, root, f"gcompris/{short}"),
        "name": name,
        "names": words.accepted(name, net, domain),
        "source": "gcompris",
    }


def word_drawings(root: Path) -> Iterator[dict[str, Any]]:
    """Drawings of the words that children learn."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for path in sorted(_files(root).glob("*.rcc")):
        for place, content in resources(path):
            name = words.clean_file(Path(place).stem)
            is_image = place.endswith((".png", ".svg", ".webp", ".jpg"))
            if "/words" in place and is_image and name not in NOT_WORDS:
                yield _record(_image(content, place), place, name, "animals", net, root)


def photographs(root: Path) -> Iterator[dict[str, Any]]:
    """Photographs of animals, monuments and things.

    Explorations name theirs by a title, the categories by the file. The exploration of the world's
    music is left out: its titles are countries, which the photographs of musicians do not show.
    """
    yield from _explored(root)
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for place, content in resources(_files(root) / "categorization.rcc"):
        if "/resource/images/" in place and place.endswith(PHOTOS) and not UNSEEN.search(place):
            name = words.clean_file(Path(place).stem)
            name = WHOLE.get(name, name)
            domain = "animals" if "/fishes/" in place else "tools"
            yield _record(_image(content, place), place, name, domain, net, root)


def _explored(root: Path) -> Iterator[dict[str, Any]]:
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for stem in EXPLORED:
        files = dict(resources(_files(root) / f"{stem}.rcc"))
        boards = [b for p, b in sorted(files.items()) if "/board/" in p and p.endswith(".qml")]
        for board in boards:
            for found in TITLES.finditer(board.decode("utf-8")):
                title, place = found["title"].split(",")[0], found["image"]
                name = words.without_article(words.clean(title))
                domain = "animals" if "animals" in stem else ""
                yield _record(_image(files[place], place), place, name, domain, net, root)
