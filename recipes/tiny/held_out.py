"""Drawings of held-out things, for learning from the context: names that are made up, or a rule.

Tasks of `isthmus eval` that are never trained on, of the things that `scene-things` holds out:

- `dev-drawings`, `test-drawings`: views of one drawing of each thing, labelled with its name;
- `dev-styles`, `test-styles`: drawings of each thing in several styles, one of each;
- `dev-kinds`, `test-kinds`: a drawing of each thing, labelled with what kind of thing it is, so
  that a name stands for a rule and what is asked about has not been shown.

The test is of Twemoji, a style that nothing is trained on, and of FxEmoji and the drawings in Noto
that are kept from all training. Dev is of the drawings in EmojiOne that are kept from training, and
of training styles beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import numpy as np
from PIL import Image, ImageOps

VIEWS = 9
"""Views of each drawing: eight to show and one to ask about."""
SMALLEST = 0.65
"""The smallest view's side, as a share of the drawing's."""
TURNED = 15
"""How far a view is turned to either side, in degrees."""
STYLES = {
    "dev": (
        ("emojione", "emojione"),
        ("train-emoji", "openmoji"),
        ("train-emoji", "fluent-emoji-flat"),
    ),
    "test": (("test-twemoji", "twemoji"), ("test-fxemoji", "fxemoji"), ("noto", "noto")),
}
"""Part to record files and styles; the first is the one of views and kinds."""
LEAST_OF_A_KIND = 6
WHITE = (255, 255, 255)


def things(root: Path, part: str) -> list[dict[str, Any]]:
    """The things of a held-out part, in the order of their names."""
    rows = drawings.records_of(root, "scene-things")
    return sorted((row for row in rows if row["part"] == part), key=lambda row: str(row["name"]))


def pictures(root: Path, part: str) -> list[dict[str, str]]:
    """For each style of a part, the image of each emoji that it draws."""
    found = []
    for file, style in STYLES[part]:
        own = {}
        if file == style:  # drawings that no record has, since nothing may be trained on them
            for thing in things(root, part):
                for code in thing["concepts"]:
                    if (root / "pictures" / style / f"{code}.png").is_file():
                        own[code] = f"pictures/{style}/{code}.png"
        else:
            rows = drawings.records_of(root, file)
            own = {row["concept"]: row["image"] for row in rows if row["source"] == style}
        found.append(own)
    return found


def views(root: Path, part: str) -> Iterator[dict[str, Any]]:
    """Views of a drawing of each thing; of several emoji of one name in turn."""
    drawn, *_ = pictures(root, part)
    for number, thing in enumerate(things(root, part)):
        codes = [code for code in thing["concepts"] if code in drawn]
        for turn in range(VIEWS if codes else 0):
            code = codes[turn % len(codes)]
            rng = np.random.default_rng([ord(part[0]), number, turn])
            with Image.open(root / drawn[code]) as image:
                seen = view(image.convert("RGB"), rng)
            yield {
                "image": drawings.save(seen, root, f"views/{part}/{code}-{turn}"),
                "name": thing["name"],
                "source": Path(drawn[code]).parent.name,
            }


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A drawing turned a little, smaller, perhaps mirrored, and somewhere on the same white."""
    side = max(image.size)
    seen = ImageOps.pad(image, (side, side), color=WHITE)
    if rng.random() < 0.5:
        seen = ImageOps.mirror(seen)
    angle = float(rng.uniform(-TURNED, TURNED))
    seen = seen.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=WHITE)
    smaller = round(side * float(rng.uniform(SMALLEST, 1)))
    seen = seen.resize((smaller, smaller), Image.Resampling.LANCZOS)
    paper = Image.new("RGB", (side, side), WHITE)
    left, top = (int(rng.integers(side - smaller + 1)) for _ in range(2))
    paper.paste(seen, (left, top))
    return paper


def styles(root: Path, part: str) -> Iterator[dict[str, Any]]:
    """A drawing in each style, of the things that all styles of the part draw."""
    drawn = pictures(root, part)
    for thing in things(root, part):
        codes = [c for c in thing["concepts"] if all(c in own for own in drawn)]
        for own in drawn if codes else ():
            yield _record(own[codes[0]], thing["name"])


def kinds(root: Path, part: str) -> Iterator[dict[str, Any]]:
    """A drawing of each thing that is of one kind, and clearly so, labelled with the kind."""
    drawn, *_ = pictures(root, part)
    clear = [t for t in things(root, part) if len(t["is"]) == 1 and not t["unclear"]]
    counts = Counter(thing["is"][0] for thing in clear)
    for thing in clear:
        codes = [code for code in thing["concepts"] if code in drawn]
        if codes and counts[thing["is"][0]] >= LEAST_OF_A_KIND:
            yield _record(drawn[codes[0]], thing["is"][0])


def _record(image: str, name: str) -> dict[str, Any]:
    return {"image": image, "name": name, "source": Path(image).parent.name}
