"""The figure of the architecture, drawn from the code: the path of an image, and the rooms.

    python tools/site_pages/figure.py > architecture.svg

What stands in the boxes is read: parts by their registrations, rooms, layers and imports by
`rooms`. A file or a class that is named here and gone is an error. Colours are the site's, with
others where the drawing stands alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from site_pages.rooms import SRC, Room, rooms

WIDTH = 760
MARGIN = 8
STYLE = """
.figure text { font: 12px system-ui, sans-serif; fill: var(--md-typeset-color, #222); }
.figure .name { font-weight: 600; font-size: 13px; }
.figure .small { font-size: 10.5px; opacity: .75; }
.figure .code { font: 10.5px ui-monospace, monospace; }
.figure .frozen { fill: var(--isthmus-frozen, #dbe8ee); }
.figure .trained { fill: var(--isthmus-trained, #f6dfbd); }
.figure .room { fill: var(--md-default-bg-color, #fff); stroke: currentColor; stroke-opacity: .45; }
.figure .core { fill: var(--isthmus-core, #f6dfbd); }
.figure .line { stroke: currentColor; stroke-opacity: .38; fill: none; }
.figure .band { fill: currentColor; opacity: .045; }
"""


@dataclass(frozen=True)
class Station:
    """A station on the path of an image.

    Attributes:
        name: What it is called.
        frozen: Whether it is frozen; None for what has no weights.
        home: The file under `src/isthmus` where it is.
        cls: The class or function there.
        gives: What leaves it: a shape, or words.
        parts: The folder whose files register the parts that can stand here.
        registry: The registry's name in those files.
    """

    name: str
    frozen: bool | None
    home: str
    cls: str
    gives: str
    parts: str = ""
    registry: str = ""


STATIONS = (
    Station("medium", None, "model/media/image.py", "ImageMedium", "pixels (P, 3, H, W)"),
    Station(
        "encoder", True, "model/backbones/vision.py", "VisionEncoder", "features (P, N, D_vision)"
    ),
    Station(
        "connector",
        False,
        "model/connectors/__init__.py",
        "Connector",
        "visual tokens (P, M, D)",
        "model/connectors",
        "CONNECTORS",
    ),
    Station(
        "fusion",
        False,
        "model/fusion/base.py",
        "Fusion",
        "embeddings (B, L, D)",
        "model/fusion",
        "FUSIONS",
    ),
    Station(
        "language model", True, "model/backbones/language.py", "LanguageModel", "logits (B, L, V)"
    ),
)
LIBRARIES = {"encoder": ("timm", "Transformers", "open_clip"), "language model": ("Transformers",)}


def drawing() -> str:
    """The figure as one SVG element, without a blank line, so that Markdown takes it as it is."""
    path, height = _path(top=8)
    found, bottom = _rooms(top=height + 40)
    lines = [
        f'<svg class="figure" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" '
        'role="img" aria-labelledby="figure-title" fill="none" color="currentColor">',
        '<title id="figure-title">The path of an image through a model, and the rooms of the '
        "package, each importing only those below it</title>",
        f"<style>{' '.join(STYLE.split())}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0 8 4 0 8z" fill="currentColor" '
        'fill-opacity=".55"/></marker></defs>',
        *path,
        *found,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# --- The path of an image -------------------------------------------------------------------------


def _path(top: int) -> tuple[list[str], int]:
    """The stations in a row, and the height that they end at."""
    gap, count = 16, len(STATIONS)
    wide = (WIDTH - 2 * MARGIN - gap * (count - 1)) / count
    inside = [_inside(station) for station in STATIONS]
    tall = 46 + 14 * max(len(names) for names in inside)
    out = []
    for i, (station, names) in enumerate(zip(STATIONS, inside, strict=True)):
        x = MARGIN + i * (wide + gap)
        kind = {True: "frozen", False: "trained", None: "room"}[station.frozen]
        told = {True: "frozen", False: "trained", None: "opens files"}[station.frozen]
        out.append(_box(x, top, wide, tall, kind, f"{station.cls} in {station.home}"))
        out.append(_text(x + wide / 2, top + 18, station.name, "name"))
        out.append(_text(x + wide / 2, top + 32, told, "small"))
        out += [_text(x + wide / 2, top + 50 + 14 * k, n, "code") for k, n in enumerate(names)]
        what, _, shape = station.gives.partition(" (")
        out.append(_text(x + wide / 2, top + tall + 16, f"{what} ↦" if i < count - 1 else what))
        out.append(_text(x + wide / 2, top + tall + 30, f"({shape}", "code"))
        if i:
            y = top + 24
            out.append(_line(x - gap, y, x - 1, y))
    return out, top + tall + 34


def _inside(station: Station) -> list[str]:
    """What can stand at a station, read from the code."""
    _check(station)
    if station.registry:
        return sorted(_registered(SRC / station.parts, station.registry))
    if station.name == "medium":
        return [f"{kind}s" for kind in sorted(_registered(SRC / "media", "KINDS"))]
    return list(LIBRARIES[station.name])


def _check(station: Station) -> None:
    """Refuses a station whose class is not where it is said to be.

    Raises:
        ValueError: If it is not.
    """
    tree = ast.parse((SRC / station.home).read_text(encoding="utf-8"))
    named = {getattr(node, "name", "") for node in tree.body}
    if station.cls not in named:
        raise ValueError(f"src/isthmus/{station.home} has no {station.cls}: expected it there")


def _registered(folder: Path, registry: str) -> Iterator[str]:
    """The names under which the files of a folder register parts."""
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for decorator in node.decorator_list:
                    if (
                        isinstance(decorator, ast.Call)
                        and ast.unparse(decorator.func) == f"{registry}.register"
                    ):
                        yield str(ast.literal_eval(decorator.args[0]))


# --- The rooms ------------------------------------------------------------------------------------


def _rooms(top: int) -> tuple[list[str], int]:
    """The rooms in rows, the highest first, with a line to each that they import."""
    found = rooms()
    tall, step = 34, 58
    highest = max(room.row for room in found)
    bottom = top + (highest + 1) * step
    place: dict[str, tuple[float, float, float]] = {}
    for row in range(highest + 1):
        names = _ordered([room for room in found if room.row == row], place)
        widths = [max(84.0, 9.0 * len(room.name) + 26) for room in names]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(names) + 1)
        x = MARGIN + gap
        for room, wide in zip(names, widths, strict=True):
            place[room.name] = (x, top + (highest - row) * step, wide)
            x += wide + gap
    bands = [
        f'<rect class="band" x="0" y="{top - 8 + (highest - last) * step}" width="{WIDTH}" '
        f'height="{(last - first + 1) * step - 8}" rx="6"/>'
        for first, last in _spans(found)
    ]
    lines, boxes = [], []
    for room in found:
        x, y, wide = place[room.name]
        for other in room.imports:
            x2, y2, wide2 = place[other]
            lines.append(_curve(x + wide / 2, y + tall, x2 + wide2 / 2, y2 - 1))
        kind = "room core" if room.name == "model" else "room"
        boxes.append(_box(x, y, wide, tall, kind, room.about))
        boxes.append(_text(x + wide / 2, y + 15, room.name, "name"))
        boxes.append(_text(x + wide / 2, y + 28, f"{room.lines:,} lines", "small"))
    return [*bands, *lines, *boxes], bottom


def _ordered(row: list[Room], place: dict[str, tuple[float, float, float]]) -> list[Room]:
    """The rooms of a row, each as near as can be above those that it imports."""

    def middle(room: Room) -> float:
        below = [place[other][0] + place[other][2] / 2 for other in room.imports]
        return sum(below) / len(below) if below else WIDTH / 2

    return sorted(row, key=lambda room: (middle(room), room.name))


def _spans(found: list[Room]) -> list[tuple[int, int]]:
    """The first and the last row of each layer."""
    numbers = sorted({room.layer for room in found})
    rows = [[room.row for room in found if room.layer == n] for n in numbers]
    return [(min(own), max(own)) for own in rows]


# --- Marks ----------------------------------------------------------------------------------------


def _box(x: float, y: float, wide: float, tall: float, kind: str, about: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
        f'rx="6"><title>{escape(about)}</title></rect>'
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _line(x: float, y: float, x2: float, y2: float) -> str:
    return f'<path class="line" marker-end="url(#tip)" d="M{x:.1f} {y:.1f}L{x2:.1f} {y2:.1f}"/>'


def _curve(x: float, y: float, x2: float, y2: float) -> str:
    bend = min(40.0, (y2 - y) / 2)
    return (
        f'<path class="line" marker-end="url(#tip)" d="M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} '
        f'{x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"/>'
    )


if __name__ == "__main__":
    print(drawing(), end="")
