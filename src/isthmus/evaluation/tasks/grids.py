"""Generated questions about grids of coloured shapes, with the rationale that solves them.

Counting is one hop, two-hop is two counts put together. A rationale lists the matching cells in
raster order with a running count, so that each of its steps is one look at one place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.evaluation.tasks.drawing import COLOURS, SHAPES, draw_grid, generator
from isthmus.prompts.prompt import Example

Cells = list[list[tuple[str, str] | None]]
Thing = tuple[str, str]
TEST, SUPPORT = 0, 1
THINGS: tuple[Thing, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def plural(thing: Thing) -> str:
    """The name of several of a thing.

    Example:
        >>> plural(("red", "circle"))
        'red circles'
    """
    return f"{thing[0]} {thing[1]}s"


def places(cells: Cells, thing: Thing) -> list[tuple[int, int]]:
    """Row and column, from 1, of each cell that holds a thing, in raster order."""
    return [
        (r, c) for r, row in enumerate(cells, 1) for c, cell in enumerate(row, 1) if cell == thing
    ]


def tally(cells: Cells, thing: Thing) -> str:
    """The places of a thing with a running count.

    Example:
        >>> tally([[("red", "circle"), None], [None, ("red", "circle")]], ("red", "circle"))
        'red circles: r1c1 1, r2c2 2.'
        >>> tally([[None]], ("red", "circle"))
        'red circles: none 0.'
    """
    found = places(cells, thing)
    listed = ", ".join(f"r{r}c{c} {i}" for i, (r, c) in enumerate(found, 1)) or "none 0"
    return f"{plural(thing)}: {listed}."


def _grid(rng: np.random.Generator, side: int, wanted: dict[Thing, int], others: int) -> Cells:
    """A grid with so many of each wanted thing and other things, at random places."""
    rest = [t for t in THINGS if t not in wanted]
    things = [t for t, n in wanted.items() for _ in range(n)]
    things += [rest[i] for i in rng.integers(0, len(rest), size=others)]
    flat: list[Thing | None] = [*things, *[None] * (side * side - len(things))]
    order = rng.permutation(len(flat))
    return [[flat[order[r * side + c]] for c in range(side)] for r in range(side)]


def _items(
    seed: int, stream: int, count: int, make: Callable[[np.random.Generator], Example]
) -> Generated:
    name = "test" if stream == TEST else "support"
    return Generated(count, lambda i: Item(f"{name}-{i}", make(generator(seed, stream, i))))


def _check(side: int, size: int) -> None:
    if side < 2 or size // side < 6:
        raise ConfigError(
            f"a grid of {side} x {side} on {size} pixels: expected at least 2 cells a side and 6 "
            "pixels a cell"
        )


def counting(
    seed: int = 0, n: int = 500, support: int = 64, *, side: int = 4, size: int = 128
) -> Task:
    """How many shapes of a colour there are, 0 to 8.

    Args:
        seed: Seed of all items.
        n: Test items.
        support: Items that demonstrations are chosen from.
        side: Cells a side.
        size: Pixels a side.

    Raises:
        ConfigError: If cells would be too small to tell shapes apart.

    Example:
        >>> counting().items[0].example.question.startswith("How many ")
        True
    """
    _check(side, size)
    most = min(8, side * side)

    def make(rng: np.random.Generator) -> Example:
        thing = THINGS[int(rng.integers(len(THINGS)))]
        count = int(rng.integers(0, most + 1))
        others = int(rng.integers(0, side * side - count + 1))
        cells = _grid(rng, side, {thing: count}, others)
        question = f"How many {plural(thing)} are there?"
        return Example(draw_grid(cells, size), question, str(count), tally(cells, thing))

    return Task(
        name="counting",
        kind="number",
        items=_items(seed, TEST, n, make),
        support=_items(seed, SUPPORT, support, make),
        chance=1 / (most + 1),
        max_new_tokens=8,
        max_rationale_tokens=128,
    )


def two_hop(
    seed: int = 0,
    n: int = 500,
    support: int = 64,
    *,
    side: int = 4,
    size: int = 128,
    modulus: int = 10,
) -> Task:
    """Twice the count of one thing plus the count of another, modulo 10.

    Counts are drawn evenly, so the answer is nearly even over 0 to 9, and knowing one of the two
    counts says little about it.

    Args:
        seed: Seed of all items.
        n: Test items.
        support: Items that demonstrations are chosen from.
        side: Cells a side.
        size: Pixels a side.
        modulus: Answers are 0 to one less.

    Raises:
        ConfigError: If cells would be too small to tell shapes apart.

    Example:
        >>> two_hop().items[0].example.rationale.count(":")
        2
    """
    _check(side, size)
    most = min(6, side * side // 2)

    def make(rng: np.random.Generator) -> Example:
        first, second = (THINGS[i] for i in rng.permutation(len(THINGS))[:2])
        a, b = (int(v) for v in rng.integers(0, most + 1, size=2))
        others = int(rng.integers(0, side * side - a - b + 1))
        cells = _grid(rng, side, {first: a, second: b}, others)
        total = 2 * a + b
        question = f"({plural(first)} * 2 + {plural(second)}) mod {modulus}?"
        rationale = (
            f"{tally(cells, first)} {tally(cells, second)} "
            f"{a} * 2 + {b} = {total}. {total} mod {modulus} = {total % modulus}."
        )
        return Example(draw_grid(cells, size), question, str(total % modulus), rationale)

    return Task(
        name="two-hop",
        kind="number",
        items=_items(seed, TEST, n, make),
        support=_items(seed, SUPPORT, support, make),
        chance=1 / modulus,
        max_new_tokens=8,
        max_rationale_tokens=224,
    )


TASKS = {
    "counting": Known("how many shapes of a colour are in a grid", generate=counting),
    "two-hop": Known("two counts in a grid put together, with rationales", generate=two_hop),
}
