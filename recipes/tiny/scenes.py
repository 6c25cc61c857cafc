"""Generated scenes: one to four drawings on a ground, each in a quadrant or in the middle.

A `Scene` says what is where. Questions and answers are made from it alone. `Painter` makes it an
image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import drawings
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from things import Thing, Things

SIDE = drawings.SIDE
PLACES = ("top left", "top right", "middle", "bottom left", "bottom right")
"""In reading order."""
MOST = 4
"""Things in a scene."""
COLOURS = {
    "white": (255, 255, 255),
    "gray": (152, 152, 152),
    "black": (26, 26, 26),
    "red": (208, 48, 44),
    "orange": (242, 142, 38),
    "yellow": (247, 217, 70),
    "green": (76, 164, 80),
    "blue": (64, 116, 212),
    "purple": (132, 78, 172),
    "pink": (247, 164, 194),
    "brown": (134, 86, 50),
}
WHITE, MIXED = 0.2, 0.2
"""Shares of grounds that are white, and that have no one colour."""
SHADE = 14
"""How far a ground's colour may be from its name's, in each channel."""
GRADE = 24
"""How much lighter one end of a ground may be than the other."""
SMALLEST, LARGEST = 58, 122
"""A thing's longer side in a quadrant."""
MIDDLE, MIDDLE_ALONE = (52, 92), (80, 210)
"""The same in the middle, beside others and alone."""
BESIDE_MIDDLE = 100
"""A thing's longer side in a quadrant, at most, where another is in the middle."""
OVERLAP = 0.05
"""Share of the smaller of two boxes that may be covered."""
ASIDE = 20
"""How far a thing's centre may be from that of its quadrant."""
TRIES = 16
"""Grounds that are drawn for a scene until one hides little."""
NEAR, HIDDEN = 60.0, 0.4
"""Distance of two colours that look alike, and the share of an outline that may do so."""

Colour = tuple[int, int, int]
Drawing = tuple[str, str]
Hides = Callable[[Drawing, Colour], float]
"""Share of a drawing's outline that a ground's colour hides."""


@dataclass(frozen=True)
class Ground:
    """What things stand on.

    Attributes:
        name: The colour's name; None where it has no one colour.
        start: The colour at one end, and
        end: at the other.
        slope: Direction from one end to the other, in quarter turns; 4 is from the middle outwards.
    """

    name: str | None
    start: Colour
    end: Colour
    slope: int = 0


@dataclass(frozen=True)
class Placed:
    """A thing in its place.

    Attributes:
        thing: The thing.
        place: One of `PLACES`.
        drawing: The emoji and the style that it is drawn with.
        mirrored: Whether its left is its right.
    """

    thing: Thing
    place: str
    drawing: Drawing
    mirrored: bool = False

    @property
    def column(self) -> int:
        """-1 on the left, 1 on the right, 0 in the middle."""
        return {"left": -1, "right": 1}.get(self.place.split()[-1], 0)

    @property
    def row(self) -> int:
        """-1 at the top, 1 at the bottom, 0 in the middle."""
        return {"top": -1, "bottom": 1}.get(self.place.split()[0], 0)


@dataclass(frozen=True)
class Scene:
    """What is where.

    Attributes:
        placed: The things, in reading order.
        ground: What they stand on.
        seed: Decides sizes and exact positions.
    """

    placed: tuple[Placed, ...]
    ground: Ground
    seed: tuple[int, ...] = (0,)

    @property
    def things(self) -> list[Thing]:
        """Each thing once, in reading order."""
        return list({p.thing.name: p.thing for p in self.placed}.values())

    def count(self, name: str) -> int:
        """How many things of a name there are."""
        return sum(p.thing.name == name for p in self.placed)

    def at(self, place: str) -> Placed | None:
        """What is at a place."""
        return next((p for p in self.placed if p.place == place), None)

    def alone(self) -> list[Placed]:
        """The things of which there is one."""
        return [p for p in self.placed if self.count(p.thing.name) == 1]


def composed(
    rng: np.random.Generator,
    wanted: Sequence[tuple[Thing, str | None]],
    draws: Callable[[Thing], Sequence[Drawing]],
    hides: Hides = lambda drawing, colour: 0.0,
    mirror: float = 0.0,
) -> Scene:
    """A scene of things, each at a given place or at any that is left.

    Args:
        rng: Where places, styles and the ground are drawn from.
        wanted: The things and their places.
        draws: The drawings of a thing that may be shown.
        hides: What a ground hides of a drawing; one that hides little is looked for.
        mirror: Share of drawings that are mirrored.
    """
    taken = {place for _, place in wanted if place}
    left = [str(p) for p in rng.permutation([p for p in PLACES if p not in taken])]
    placed = []
    for thing, place in wanted:
        own = draws(thing)
        drawing = own[int(rng.integers(len(own)))]
        mirrored = mirror > 0 and rng.random() < mirror
        placed.append(Placed(thing, place or left.pop(), drawing, mirrored))
    placed.sort(key=lambda p: PLACES.index(p.place))
    kind = rng.random()
    grounds: list[tuple[float, Ground]] = []
    while len(grounds) < TRIES and (not grounds or grounds[-1][0] > HIDDEN):
        ground = drawn_ground(rng, kind)
        grounds.append((max(hides(p.drawing, ground.start) for p in placed), ground))
    _, ground = min(grounds, key=lambda tried: tried[0])
    return Scene(tuple(placed), ground, (int(rng.integers(1 << 31)),))


def drawn_ground(rng: np.random.Generator, kind: float) -> Ground:
    """A ground: white, of one colour, or from one colour to another; plain or graded.

    Args:
        rng: Where its colours are drawn from.
        kind: A number below 1 that decides which of the three it is.
    """
    if kind < WHITE:
        return Ground("white", COLOURS["white"], COLOURS["white"])
    if kind < WHITE + MIXED:
        one, other = (_colour(rng.integers(90, 256, 3)) for _ in range(2))
        return Ground(None, one, other, int(rng.integers(5)))
    name = list(COLOURS)[int(rng.integers(1, len(COLOURS)))]
    base = np.array(COLOURS[name]) + rng.integers(-SHADE, SHADE + 1)
    grade = int(rng.integers(GRADE + 1)) if rng.random() < 0.5 else 0
    return Ground(
        name, _colour(base - grade // 2), _colour(base + grade // 2), int(rng.integers(5))
    )


def _colour(values: NDArray[np.int64]) -> Colour:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue


class Painter:
    """Paints scenes.

    Args:
        things: The things and their styles.
    """

    def __init__(self, things: Things) -> None:
        self.things = things
        self.cut_out = cache(self._cut_out)
        self._outline = cache(self._outline_colours)

    def _cut_out(self, drawing: Drawing) -> Image.Image:
        """A drawing on nothing, cut to what is drawn."""
        code, name = drawing
        style = self.things.styles[name]
        layer = drawings.rasterise(style.svg(style.named[code]), MIDDLE_ALONE[1])
        return layer.crop(layer.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox())

    def _outline_colours(self, drawing: Drawing) -> NDArray[np.float64]:
        """(N, 3): the colours along the outline."""
        pixels = np.asarray(self.cut_out(drawing)).astype(float)
        solid = np.pad(pixels[..., 3] > 128, 3)
        inner = solid.copy()
        for axis in (0, 1):
            for step in (-3, 3):
                inner &= np.roll(solid, step, axis)
        edge = (solid & ~inner)[3:-3, 3:-3]
        return pixels[edge][:, :3]

    def hides(self, drawing: Drawing, colour: Colour) -> float:
        """Share of a drawing's outline that looks like a colour."""
        outline = self._outline(drawing)
        if not len(outline):
            return 1.0
        apart = np.linalg.norm(outline - np.array(colour), axis=1)
        return float((apart < NEAR).mean())

    def paint(self, scene: Scene) -> Image.Image:
        """The image of a scene."""
        image = painted_ground(scene.ground)
        cut_outs = [self.cut_out(p.drawing) for p in scene.placed]
        boxes = arranged(scene, [c.size for c in cut_outs])
        for placed, cut_out, box in zip(scene.placed, cut_outs, boxes, strict=True):
            left, top, right, bottom = box
            own = cut_out.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            own = ImageOps.mirror(own) if placed.mirrored else own
            image.paste(own, (left, top), own)
        return image


def painted_ground(ground: Ground) -> Image.Image:
    """A ground without anything on it."""
    if ground.start == ground.end:
        return Image.new("RGB", (SIDE, SIDE), ground.start)
    along = np.linspace(0.0, 1.0, SIDE)
    if ground.slope == 4:
        share = np.minimum(1.0, np.hypot(*np.meshgrid(along - 0.5, along - 0.5)) / 0.7)
    else:
        share = np.rot90(np.broadcast_to(along, (SIDE, SIDE)), ground.slope)
    start, end = np.array(ground.start), np.array(ground.end)
    pixels = start + share[..., None] * (end - start)
    return Image.fromarray(pixels.round().astype(np.uint8))


Box = tuple[int, int, int, int]


def arranged(scene: Scene, sizes: Sequence[tuple[int, int]]) -> list[Box]:
    """Where each thing stands: within its quadrant or about the middle, hardly over another.

    Args:
        scene: The scene, whose seed decides it.
        sizes: Width and height of each thing's drawing, of which the shape is kept.
    """
    rng = np.random.default_rng(scene.seed)
    found: list[Box] = []
    for placed, size in zip(scene.placed, sizes, strict=True):
        largest = 1.0
        bounds = _bounds(scene, placed)
        while True:
            box = _drawn_box(rng, placed, size, bounds[0], bounds[1] * largest)
            if all(overlap(box, other) <= OVERLAP for other in found):
                break
            largest *= 0.97
        found.append(box)
    return found


def _bounds(scene: Scene, placed: Placed) -> tuple[int, int]:
    """A thing's longer side, at least and at most."""
    if placed.place == "middle":
        return MIDDLE_ALONE if len(scene.placed) == 1 else MIDDLE
    return SMALLEST, BESIDE_MIDDLE if scene.at("middle") else LARGEST


def _drawn_box(
    rng: np.random.Generator, placed: Placed, size: tuple[int, int], least: float, most: float
) -> Box:
    """A box for a thing, given its longer side at least and at most."""
    longer = rng.uniform(min(least, most), most)
    longer = min(most, longer * (max(size) / min(size)) ** 0.3)  # what is thin may be longer
    width, height = (max(8, round(s * longer / max(size))) for s in size)
    half = SIDE // 2
    if placed.place == "middle":
        about = rng.integers(-10, 11, 2)
        left, top = half - width // 2 + int(about[0]), half - height // 2 + int(about[1])
        return left, top, left + width, top + height
    corner = []
    for length, side in ((width, placed.column), (height, placed.row)):
        room = (half - length) // 2
        aside = min(ASIDE, max(0, room - 2))
        corner.append(room + int(rng.integers(-aside, aside + 1)) + half * (side > 0))
    return corner[0], corner[1], corner[0] + width, corner[1] + height


def overlap(one: Box, other: Box) -> float:
    """Share of the smaller of two boxes that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return max(0, width) * max(0, height) / max(1, min(areas))
