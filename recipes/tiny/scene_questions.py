"""Questions of one hop about a scene, with their answers: read off it, and nothing is to be added.

| kind | answer |
|---|---|
| presence | yes or no, as often each |
| count | 0 to 4, as often each |
| place | one of `PLACES`, as often each |
| at | the name of what is at a place, or nothing |
| list | all things in reading order, "two cats and an apple" |
| ground | the colour of the background |
| side | yes or no: whether one thing is left of, right of, above or below another |
| beside | the name of what stands left of, right of, above or below a thing |
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scenes import COLOURS, MOST, PLACES, Placed, Scene
from things import Thing

WORDINGS = {
    "presence": (
        "Is there {one}?",
        "Is there {one} in the picture?",
        "Can you see {one}?",
        "Does the picture show {one}?",
    ),
    "count": (
        "How many {plural} are there?",
        "How many {plural} are in the picture?",
        "How many {plural} can you see?",
        "Count the {plural}.",
    ),
    "place": (
        "Where is the {name}?",
        "Where in the picture is the {name}?",
        "In which part of the picture is the {name}?",
    ),
    "at": (
        "What is {at}?",
        "What can you see {at}?",
        "What is {at} of the picture?",
        "Which thing is {at}?",
    ),
    "list": (
        "What is in the picture?",
        "What does the picture show?",
        "What can you see?",
        "Name everything in the picture.",
    ),
    "ground": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "What colour is the background?",
    ),
    "side": (
        "Is the {name} {way} the {other}?",
        "Does the {name} stand {way} the {other}?",
        "In the picture, is the {name} {way} the {other}?",
    ),
    "beside": (
        "What is {way} the {name}?",
        "Which thing is {way} the {name}?",
        "What can you see {way} the {name}?",
    ),
}
"""How each kind is asked. An evaluation asks the first; training draws one of them."""
WHERE = "What is where?"
NUMBERS = ("no", "one", "two", "three", "four")
WAYS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where something is, seen from another: columns and rows away."""
SAID = {"left of": "to the left of", "right of": "to the right of"}
CLOSED = {
    "presence": ("yes", "no"),
    "count": ("0", "1", "2", "3", "4"),
    "place": PLACES,
    "side": ("yes", "no"),
    "ground": tuple(COLOURS),
}
"""Kinds whose answers come up as often as each other, and these answers."""
SLACK = 3
"""How much more often than the rarest an answer may have come up, and be asked for again."""
NOTHING = "nothing"
EMPTY = 0.1
"""Share of questions about a place where there is nothing."""
ALIKE = 0.5
"""Share of things asked for in vain that are of the same group as one that is there."""


@dataclass(frozen=True)
class Asked:
    """A question about a scene.

    Attributes:
        kind: A key of `WORDINGS`.
        question: What is asked.
        answer: What is right.
        aliases: Other answers that are right.
    """

    kind: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()


class Asker:
    """Makes questions about scenes; answers of a kind come up as often as each other.

    Args:
        pool: Things that may be asked for in vain.
        wordings: How many of each kind's wordings are used; None for all.
    """

    def __init__(self, pool: Sequence[Thing], wordings: int | None = None) -> None:
        self.pool = list(pool)
        self.wordings = wordings
        self.asked: dict[str, Counter[str]] = {kind: Counter() for kind in WORDINGS}

    def ask(
        self, rng: np.random.Generator, scene: Scene, kind: str, answer: str | None = None
    ) -> Asked | None:
        """A question of a kind; None if the scene has none whose answer is wanted.

        Args:
            rng: Where it is drawn from.
            scene: The scene.
            kind: A key of `WORDINGS`.
            answer: The answer that is wanted; None for one that came up least so far.
        """
        found = MAKERS[kind](self, rng, scene)
        if answer is not None:
            found = [f for f in found if f[1] == answer]
        if not found:
            return None
        counts = self.asked[kind]
        least = min(counts[f[1]] for f in found)
        rarest_of_all = min(counts[a] for a in CLOSED[kind]) if kind in CLOSED else least
        if answer is None and least > rarest_of_all + SLACK:
            return None
        rarest = [f for f in found if counts[f[1]] == least]
        words, answer, aliases = rarest[int(rng.integers(len(rarest)))]
        counts[answer] += 1
        wordings = WORDINGS[kind][: self.wordings]
        wording = wordings[int(rng.integers(len(wordings)))]
        return Asked(kind, wording.format(**words), answer, tuple(dict.fromkeys(aliases)))

    def missing(self, rng: np.random.Generator, scene: Scene, *, counted: bool = False) -> Thing:
        """A thing that is not there and that nobody could think is."""
        there = scene.things
        good = [
            t
            for t in self.pool
            if not scene.count(t.name)
            and (t.plural or not counted)
            and not any(t.clashes(o) for o in there)
        ]
        if rng.random() < ALIKE:
            groups = {t.subgroup for t in there}
            good = [t for t in good if t.subgroup in groups] or good
        return good[int(rng.integers(len(good)))]


Found = list[tuple[dict[str, str], str, tuple[str, ...]]]
"""Words to fill in, the answer and its aliases, for each question that there could be."""


def _presence(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    there = scene.things[int(rng.integers(len(scene.things)))]
    return [({"one": there.one}, "yes", ()), ({"one": asker.missing(rng, scene).one}, "no", ())]


def _count(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    missing = asker.missing(rng, scene, counted=True)
    counted = [t for t in [*scene.things, missing] if t.plural]
    numbers = [(t, scene.count(t.name)) for t in counted]
    return [
        ({"plural": t.plural or ""}, str(n), (NUMBERS[n],) if n else ("none", "zero", NOTHING))
        for t, n in numbers
    ]


def _place(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    return [({"name": p.thing.name}, p.place, place_names(p.place)) for p in scene.alone()]


def place_names(place: str) -> tuple[str, ...]:
    """Other words for a place."""
    if place == "middle":
        return ("in the middle", "center", "centre", "in the center")
    other = place.replace("top", "upper").replace("bottom", "lower")
    ways = ("at the {}", "in the {}", "in the {} corner", "{} corner")
    return (other, *(way.format(name) for name in (place, other) for way in ways))


def at_word(place: str) -> str:
    """What stands before a place: "at the top left", "in the middle"."""
    return "in the " if place == "middle" else "at the "


def _at(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    if rng.random() < EMPTY and len(scene.placed) < len(PLACES):
        empty = [p for p in PLACES if not scene.at(p)]
        place = empty[int(rng.integers(len(empty)))]
        return [({"at": f"{at_word(place)}{place}"}, NOTHING, ("there is nothing",))]
    return [
        ({"at": f"{at_word(p.place)}{p.place}"}, p.thing.name, p.thing.names[1:])
        for p in scene.placed
    ]


def listed(scene: Scene, order: Sequence[Thing] | None = None) -> str:
    """All things of a scene in a sentence: "two cats, a dog and bread"."""
    said = []
    for thing in order or scene.things:
        count = scene.count(thing.name)
        said.append(thing.one if count == 1 else f"{NUMBERS[count]} {thing.plural or thing.name}")
    return " and ".join(part for part in (", ".join(said[:-1]), said[-1]) if part)


def placed(scene: Scene) -> str:
    """What is where, in reading order: "top left: cat, middle: dog".

    It answers `WHERE`, which is trained and never asked in an evaluation.
    """
    return ", ".join(f"{p.place}: {p.thing.name}" for p in scene.placed)


def _list(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    things = scene.things
    if len(scene.placed) == 1:
        return [({}, things[0].name, things[0].names[1:])]
    orders = list(itertools.permutations(things))[1:]
    return [({}, listed(scene), tuple(listed(scene, order) for order in orders))]


def _ground(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    name = scene.ground.name
    return [({}, name, ("grey",) if name == "gray" else ())] if name else []


def away(one: Placed, other: Placed, way: str) -> int:
    """1 if one thing is that way from the other, -1 if it is the opposite way, else 0."""
    columns, rows = WAYS[way]
    distance = (one.column - other.column) * columns + (one.row - other.row) * rows
    return int(np.sign(distance))


def _side(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    found: Found = []
    for one, other in itertools.permutations(scene.alone(), 2):
        for way in WAYS:
            if direction := away(one, other, way):
                said = (
                    SAID[way] if way in SAID and rng.random() < 0.3 and not asker.wordings else way
                )
                words = {"name": one.thing.name, "other": other.thing.name, "way": said}
                found.append((words, "yes" if direction > 0 else "no", ()))
    return found


def _beside(asker: Asker, rng: np.random.Generator, scene: Scene) -> Found:
    found: Found = []
    for about in scene.alone():
        for way, (columns, _) in WAYS.items():
            others = [p for p in scene.placed if away(p, about, way) > 0]
            # in the same row, or the same column; whatever else is that way would be as right
            level = [
                p for p in others if (p.row == about.row if columns else p.column == about.column)
            ]
            if len(others) == 1 and level == others:
                said = (
                    SAID[way] if way in SAID and rng.random() < 0.3 and not asker.wordings else way
                )
                thing = others[0].thing
                words = {"name": about.thing.name, "way": said}
                found.append((words, thing.name, thing.names[1:]))
    return found


MAKERS: dict[str, Callable[[Asker, np.random.Generator, Scene], Found]] = {
    "presence": _presence,
    "count": _count,
    "place": _place,
    "at": _at,
    "list": _list,
    "ground": _ground,
    "side": _side,
    "beside": _beside,
}


def wanted_for(
    kind: str, rng: np.random.Generator, pool: Sequence[Thing], number: int
) -> list[tuple[Thing, str | None]]:
    """Things and places of a scene that a question of a kind can be asked about.

    Args:
        kind: A key of `WORDINGS`.
        rng: Where they are drawn from.
        pool: Things to draw from.
        number: Which answer it is made for, of those that the kind has.
    """
    most = MOST + 1
    copies, place = 1, None
    total = int(rng.integers(2, MOST + 1))
    if kind == "count":
        copies = number % most
        total = int(rng.integers(max(1, copies), most))
    elif kind in ("place", "at"):
        place = PLACES[number % len(PLACES)]
        total = int(rng.integers(1, most))
    elif kind == "list":
        copies = 1 + number % MOST
        total = int(rng.integers(copies, most))
    elif kind == "beside":
        return [(t, p) for t, p in zip(apart(rng, pool, 2), _neighbours(rng), strict=True)]
    found: list[tuple[Thing, str | None]] = []
    if copies:
        thing = drawn(rng, pool, [], counted=copies > 1)
        found = [(thing, place)] * copies
    while len(found) < total:
        others = [t for t, _ in found]
        again = [t for t in others[copies:] if t.plural]
        if again and rng.random() < 0.35:
            found.append((again[int(rng.integers(len(again)))], None))
        else:
            found.append((drawn(rng, pool, others), None))
    return found


def apart(rng: np.random.Generator, pool: Sequence[Thing], count: int) -> list[Thing]:
    """Things that do not clash."""
    found: list[Thing] = []
    for _ in range(count):
        found.append(drawn(rng, pool, found))
    return found


def _neighbours(rng: np.random.Generator) -> list[str]:
    """Two places in one row or one column."""
    about = [p for p in PLACES if p != "middle"][int(rng.integers(4))]
    row, column = about.split()
    if rng.random() < 0.5:
        return [about, f"{row} {'left' if column == 'right' else 'right'}"]
    return [about, f"{'top' if row == 'bottom' else 'bottom'} {column}"]


def drawn(
    rng: np.random.Generator, pool: Sequence[Thing], others: Sequence[Thing], counted: bool = False
) -> Thing:
    """A thing that is none of the others and clashes with none."""
    names = {t.name for t in others}
    while True:
        thing = pool[int(rng.integers(len(pool)))]
        good = thing.name not in names and not any(thing.clashes(o) for o in others)
        if good and (thing.plural or not counted):
            return thing
