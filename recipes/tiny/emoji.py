"""Emoji in five styles for training and two for tests, named by emojibase (CLDR)."""

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

OBJECT_LIKE = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
SKIPPED = ("component",)
TRAINED = ("openmoji", "noto", "fluent-emoji-flat", "emojione")
TESTED = ("twemoji", "fxemoji")
FACES = re.compile(r"^(?!.*(person|man|woman|baby|girl|boy)).* face$")


def _key(hexcode: str) -> str:
    """A code point sequence without variation selectors, so that sources agree."""
    return "-".join(p for p in hexcode.upper().split("-") if p != "FE0F")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


class Emoji:
    """The 1,949 emoji of emojibase: label, group, code points, short codes."""

    def __init__(self, root: Path) -> None:
        data = packages.fetch("emojibase-data", root) / "package"
        groups = json.loads((data / "meta/groups.json").read_text())["groups"]
        self.net = words.wordnet(packages.fetch("wordnet-base", root))
        self.by_code: dict[str, dict[str, Any]] = {}
        self.by_slug: dict[str, str] = {}
        for entry in json.loads((data / "en/data.json").read_text(encoding="utf-8")):
            group = groups.get(str(entry.get("group")), "other")
            if group not in SKIPPED:
                code = _key(entry["hexcode"])
                self.by_code[code] = {"label": entry["label"], "group": group}
                self.by_slug[_slug(entry["label"])] = code
        for codes in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
            path = data / f"en/shortcodes/{codes}.json"
            for hexcode, names in json.loads(path.read_text()).items():
                for name in [names] if isinstance(names, str) else names:
                    if _key(hexcode) in self.by_code:
                        self.by_slug.setdefault(_slug(name), _key(hexcode))

    def record(self, code: str, image: str, source: str) -> dict[str, Any]:
        """The record of a picture of an emoji."""
        entry = self.by_code[code]
        animal = entry["group"] == "animals-nature"
        names = words.accepted(entry["label"], self.net, face=animal)
        return {
            "image": image,
            "name": names[0],
            "names": names,
            "source": source,
            "group": entry["group"],
            "object_like": entry["group"] in OBJECT_LIKE,
            "concept": code,
        }


def _iconify(style: str, root: Path) -> tuple[dict[str, str], dict[str, str], tuple[int, int]]:
    """Icon name to SVG body, code to icon name, and the drawing's size."""
    folder = packages.fetch(f"@iconify-json/{style}", root) / "package"
    icons = json.loads((folder / "icons.json").read_text())
    codes = json.loads((folder / "chars.json").read_text())
    bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
    named = {_key(code): name for code, name in codes.items() if name in bodies}
    return bodies, named, (icons["width"], icons["height"])


def _svg(body: str, size: tuple[int, int]) -> str:
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'
    )


def style_records(style: str, emoji: Emoji, root: Path) -> Iterator[dict[str, Any]]:
    """Renders one iconify style; emoji are found by code point, or by name where it has none."""
    bodies, named, size = _iconify(style, root)
    if not named:
        for name in bodies:
            code = emoji.by_slug.get(_slug(name))
            if code is not None:
                named.setdefault(code, name)
    for code in sorted(emoji.by_code.keys() & named.keys()):
        picture = drawings.render(_svg(bodies[named[code]], size))
        if not drawings.is_blank(picture):
            path = drawings.save(picture, root, f"{style}/{code}")
            yield emoji.record(code, path, style)
    if style == "openmoji":
        yield from _extras(bodies, set(named.values()), emoji, root, size)


def _extras(
    bodies: dict[str, str], taken: set[str], emoji: Emoji, root: Path, size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """OpenMoji's pictures beyond Unicode, by their names."""
    tones = ("-light", "-dark", "-medium", "-skin-tone", "flag-", "-low", "-old")
    for name in sorted(bodies.keys() - taken):
        label = words.clean(name)
        known = _slug(name) in emoji.by_slug
        if known or any(t in name for t in tones) or not label or len(label.split()) > 4:
            continue
        picture = drawings.render(_svg(bodies[name], size))
        if not drawings.is_blank(picture):
            names = words.accepted(label, emoji.net)
            yield {
                "image": drawings.save(picture, root, f"openmoji/{name}"),
                "name": names[0],
                "names": names,
                "source": "openmoji-extra",
                "group": None,
                "object_like": False,
                "concept": name,
            }


def fluent_3d_records(emoji: Emoji, root: Path) -> Iterator[dict[str, Any]]:
    """Fluent's 3D pictures; its flags are another font's art and are left out."""
    assets = packages.fetch("@lobehub/fluent-emoji-3d", root) / "package/assets"
    for path in sorted(assets.glob("*.webp")):
        code = _key(path.stem)
        if code in emoji.by_code and emoji.by_code[code]["group"] != "flags":
            with Image.open(path) as picture:
                image = drawings.save(drawings.over_white(picture), root, f"fluent-3d/{code}")
            yield emoji.record(code, image, "fluent-3d")


def training(root: Path) -> Iterator[dict[str, Any]]:
    """Records of the five training styles."""
    emoji = Emoji(root)
    for style in TRAINED:
        yield from style_records(style, emoji, root)
    yield from fluent_3d_records(emoji, root)


def test(style: str, root: Path) -> Iterator[dict[str, Any]]:
    """Records of a style that is never trained on."""
    yield from style_records(style, Emoji(root), root)
