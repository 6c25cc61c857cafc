"""Emoji in five styles for training and two for tests, named by emojibase (CLDR)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import drawings
import packages
import words
from PIL import Image

OBJECT_LIKE = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
TRAINED = ("openmoji", "noto", "fluent-emoji-flat", "emojione")
MOST_WORDS = 4
KEYCAPS = {"keycap: #": "keycap hash", "keycap: *": "keycap asterisk"}
CODEPOINT = re.compile(r"[0-9a-f]{4,6}(-[0-9a-f]{4,6})*")
"""Hidden icons of some styles are named by code points that no emoji has."""
OLD_TONES = re.compile(
    r"tone\d?\b|-(?:light|medium|dark)(?:-skin-tone)?$|skin-tone|-(?:haired|bald)$"
)


def key(hexcode: str) -> str:
    """A code point sequence without variation selectors, so that sources agree."""
    return "-".join(p for p in hexcode.upper().split("-") if p != "FE0F")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words.clean(text))


def names_of(label: str, group: str | None, net: words.WordNet) -> list[str]:
    """The accepted names of an emoji's label, the canonical one first.

    Args:
        label: The CLDR label, such as "dog face", "flag: Albania" or "cup with straw".
        group: The emojibase group.
        net: WordNet.
    """
    before, colon, after = label.partition(":")
    if before == "flag" and colon:
        place = words.clean(after)
        return [f"flag of {place}", f"{place} flag", f"flag {place}"]
    name = words.clean(KEYCAPS.get(label, label))
    also = [words.clean(before)] if colon and before != "keycap" else []
    if group == "animals-nature" and name.endswith(" face"):
        name, face = name.removesuffix(" face"), name
        also.append(face)
    if name.endswith(" button"):
        also.append(name.removesuffix(" button"))
    if group in OBJECT_LIKE:
        thing = re.split(r" (?:with|showing|behind) ", name)[0]
        also += [thing] if thing != name else []
    return words.accepted(name, net, group or "", tuple(also))


class Emoji:
    """The emoji of emojibase that are not mere parts of others."""

    def __init__(self, root: Path) -> None:
        self.data = packages.fetch("emojibase-data", root) / "package"
        groups = json.loads((self.data / "meta/groups.json").read_text())["groups"]
        self.net = words.wordnet(packages.fetch("wordnet-base", root))
        self.by_code: dict[str, tuple[str, str]] = {}
        self.toned: set[str] = set()
        for entry in json.loads((self.data / "en/data.json").read_text(encoding="utf-8")):
            group = groups.get(str(entry.get("group")), "other")
            if group != "component":
                self.by_code[key(entry["hexcode"])] = (entry["label"], group)
                self.toned |= {key(skin["hexcode"]) for skin in entry.get("skins", ())}

    @cached_property
    def by_slug(self) -> dict[str, str]:
        """Names without spaces to codes: labels, then short codes, then Unicode's own names."""
        slugs = {_slug(label): code for code, (label, _) in self.by_code.items()}
        for codes in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
            table = json.loads((self.data / f"en/shortcodes/{codes}.json").read_text())
            for hexcode, names in table.items():
                for name in [names] if isinstance(names, str) else names:
                    if key(hexcode) in self.by_code:
                        slugs.setdefault(_slug(name), key(hexcode))
        for code in self.by_code:
            if "-" not in code:
                slugs.setdefault(_slug(unicodedata.name(chr(int(code, 16)), "")), code)
        return slugs

    def record(self, code: str, image: str, source: str) -> dict[str, Any]:
        """The record of an image of an emoji."""
        label, group = self.by_code[code]
        return _record(names_of(label, group, self.net), image, source, group, code)


def _record(
    names: list[str], image: str, source: str, group: str | None, concept: str
) -> dict[str, Any]:
    return {
        "image": image,
        "name": names[0],
        "names": names,
        "source": source,
        "group": group,
        "object_like": group in OBJECT_LIKE,
        "concept": concept,
    }


class Style:
    """One iconify style: its icons, and which emoji each is."""

    def __init__(self, name: str, emoji: Emoji, root: Path) -> None:
        folder = packages.fetch(f"@iconify-json/{name}", root) / "package"
        self.name, self.emoji, self.root = name, emoji, root
        self.file = json.loads((folder / "icons.json").read_text())
        codes = json.loads((folder / "chars.json").read_text())
        self.named = {key(code): icon for code, icon in codes.items() if icon in self.icons}
        if not self.named:
            for icon in self.icons:
                code = emoji.by_slug.get(_slug(icon.replace("flag-for-", "flag-")))
                if code is not None:
                    self.named.setdefault(code, icon)

    @property
    def icons(self) -> dict[str, dict[str, Any]]:
        """Icon name to its drawing."""
        icons: dict[str, dict[str, Any]] = self.file["icons"]
        return icons

    def svg(self, icon: str) -> str:
        """An icon's drawing; some icons have a size of their own."""
        drawing = self.icons[icon]
        width, height = (drawing.get(k, self.file[k]) for k in ("width", "height"))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
            f"{drawing['body']}</svg>"
        )

    def drawing(self, icon: str) -> Image.Image:
        """An icon over white."""
        return drawings.render(self.svg(icon))

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of the images that are emoji."""
        for code in sorted(self.emoji.by_code.keys() & self.named.keys()):
            drawing = self.drawing(self.named[code])
            if not drawings.is_blank(drawing):
                path = drawings.save(drawing, self.root, f"{self.name}/{code}")
                yield self.emoji.record(code, path, self.name)

    def extras(self) -> Iterator[str]:
        """Icons that are no emoji of emojibase."""
        emoji = self.emoji.by_code.keys() | self.emoji.toned
        known = {icon for code, icon in self.named.items() if code in emoji}
        for icon in sorted(self.icons.keys() - known):
            hidden = self.icons[icon].get("hidden", False)
            if hidden or OLD_TONES.search(icon) or CODEPOINT.fullmatch(icon):
                continue
            yield icon

    def extra_records(self) -> Iterator[dict[str, Any]]:
        """Records of the extras whose own name is short and ends in a thing that can be seen."""
        net = self.emoji.net
        for icon in self.extras():
            label = re.sub("^flag for ", "flag of ", words.clean(icon))
            head = label.split()[0 if words.HEAD_FIRST.search(label) else -1]
            if len(label.split()) > MOST_WORDS or not net.is_thing(head):
                continue
            drawing = self.drawing(icon)
            if not drawings.is_blank(drawing):
                path = drawings.save(drawing, self.root, f"{self.name}/{icon}")
                names = words.accepted(label, net)
                yield _record(names, path, f"{self.name}-extra", None, f"{self.name}:{icon}")


def fluent_3d_records(emoji: Emoji, root: Path) -> Iterator[dict[str, Any]]:
    """Fluent's 3D images; its flags are another font's art and are left out."""
    assets = packages.fetch("@lobehub/fluent-emoji-3d", root) / "package/assets"
    paths = {key(path.stem): path for path in sorted(assets.glob("*.webp"))}
    for code, path in sorted(paths.items()):
        if code in emoji.by_code and emoji.by_code[code][1] != "flags":
            with Image.open(path) as drawing:
                image = drawings.save(drawings.over_white(drawing), root, f"fluent-3d/{code}")
            yield emoji.record(code, image, "fluent-3d")


def training(root: Path) -> Iterator[dict[str, Any]]:
    """Records of the five training styles."""
    emoji = Emoji(root)
    for name in TRAINED:
        style = Style(name, emoji, root)
        yield from style.records()
        if name in ("openmoji", "emojione"):
            yield from style.extra_records()
    yield from fluent_3d_records(emoji, root)


def twemoji(root: Path) -> Iterator[dict[str, Any]]:
    """Records of the objects in Twemoji, which is never trained on."""
    yield from (r for r in Style("twemoji", Emoji(root), root).records() if r["object_like"])


def fxemoji(root: Path) -> Iterator[dict[str, Any]]:
    """Records of FxEmoji, never trained on.

    Its other images are left out: their only names are the font's own, without spaces and such as
    nobody says ("lowerleftpencil").
    """
    yield from Style("fxemoji", Emoji(root), root).records()
