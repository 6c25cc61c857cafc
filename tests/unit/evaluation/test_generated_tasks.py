from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from PIL import Image

from isthmus.errors import ConfigError
from isthmus.evaluation.task import Item, Task
from isthmus.evaluation.tasks import TASKS, task_named
from isthmus.evaluation.tasks.drawing import COLOURS, PAPER
from isthmus.evaluation.tasks.episodes import fast_binding, operator_induction
from isthmus.evaluation.tasks.grids import counting, two_hop
from isthmus.evaluation.tasks.images import ocr
from isthmus.evaluation.tasks.text import arithmetic, parity

GENERATED = [name for name, known in TASKS.items() if known.generate]


def digest(items: Sequence[Item], *, pixels: bool) -> str:
    """A hash of everything that items hold; letters drawn differ with versions of FreeType."""
    found = hashlib.sha256()
    for item in items:
        for example in (item.example, *(item.shots or ())[:4]):
            told = (item.id, example.question, example.answer, example.rationale, item.choices)
            found.update(repr(told).encode())
            for image in example.images if pixels else ():
                found.update(repr(image.size).encode() + image.tobytes())
    return found.hexdigest()[:16]


GOLDEN = {
    "counting": "16830770aafc889e",
    "two-hop": "a5ee3a71ae30dd74",
    "parity": "daba09378c4048d8",
    "arithmetic": "de6111d771baa41e",
    "fast-binding-2": "1fa2336f2804e4d0",
    "fast-binding-5": "7c03df79beb6e8f8",
    "operator-induction": "21d9aae7b50dd437",
    "ocr": "0fcc11c9b14a749f",
}


@pytest.mark.parametrize("name", GENERATED)
def test_items_are_what_they_always_were(name: str) -> None:
    drawn = name not in ("operator-induction", "ocr")
    assert digest(task_named(name, seed=3).items[:3], pixels=drawn) == GOLDEN[name]


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_is_made_of_its_seed_alone(name: str) -> None:
    task, again, other = (task_named(name, seed=s) for s in (0, 0, 1))
    last = again.items[7]  # asked first, and alone
    assert digest([task.items[i] for i in (5, 7)], pixels=True) == digest(
        [again.items[5], last], pixels=True
    )
    assert digest(task.items[:3], pixels=True) != digest(other.items[:3], pixels=True)


@pytest.mark.parametrize("name", GENERATED)
def test_no_question_is_among_its_demonstrations(name: str) -> None:
    task = task_named(name)
    asked = {digest([_bare(i)], pixels=True) for i in task.items[:100]}
    shown = {digest([_bare(i)], pixels=True) for i in task.support}
    assert len(shown) == len(task.support)
    if name != "operator-induction":  # there are only some 240 different ones
        assert len(asked) == 100
    assert not asked & shown


def _bare(item: Item) -> Item:
    return Item("", item.example, choices=item.choices)


# --- Grids: read back from the pixels ---------------------------------------------------------


def cells_of(image: Image.Image, side: int) -> list[list[tuple[str, str] | None]]:
    """What a grid shows, from its colours and the share of each cell that they fill."""
    step = image.width // side
    names = {rgb: name for name, rgb in COLOURS.items()}
    rows: list[list[tuple[str, str] | None]] = []
    for r in range(side):
        row: list[tuple[str, str] | None] = []
        for c in range(side):
            cell = image.crop((c * step, r * step, (c + 1) * step, (r + 1) * step))
            inked = [p for p in cell.get_flattened_data() if p != PAPER]
            if not inked:
                row.append(None)
                continue
            box = cell.point(lambda v: v).convert("L").point(lambda v: 255 * (v < 240)).getbbox()
            assert box is not None
            share = len(inked) / ((box[2] - box[0]) * (box[3] - box[1]))
            shape = "square" if share > 0.95 else "circle" if share > 0.65 else "triangle"
            row.append((names[inked[0]], shape))
        rows.append(row)
    return rows


def count(cells: list[list[tuple[str, str] | None]], plural: str) -> int:
    colour, shape = plural.removesuffix("s").split()
    return sum(cell == (colour, shape) for row in cells for cell in row)


@pytest.mark.parametrize("number", range(25))
def test_counting_is_what_the_image_shows(number: int) -> None:
    example = counting(seed=2).items[number].example
    thing = re.fullmatch(r"How many (\w+ \w+) are there\?", example.question)
    assert thing is not None
    assert count(cells_of(example.images[0], 4), thing[1]) == int(example.answer or "")


@pytest.mark.parametrize("number", range(25))
def test_two_hop_rationales_are_true_of_the_image(number: int) -> None:
    example = two_hop(seed=2).items[number].example
    asked = re.fullmatch(r"\((\w+ \w+) \* 2 \+ (\w+ \w+)\) mod 10\?", example.question)
    assert asked is not None
    cells = cells_of(example.images[0], 4)
    counts = [count(cells, name) for name in asked.groups()]
    total = 2 * counts[0] + counts[1]
    assert int(example.answer or "") == total % 10
    *tallies, sums = re.split(r"(?<=\.) (?=\w+ \w+s:|\d)", example.rationale or "", maxsplit=2)
    assert sums == f"{counts[0]} * 2 + {counts[1]} = {total}. {total} mod 10 = {total % 10}."
    for told, name, expected in zip(tallies, asked.groups(), counts, strict=True):
        assert told.startswith(f"{name}: ")
        steps = re.findall(r"r(\d)c(\d) (\d)", told)
        colour, shape = name.removesuffix("s").split()
        places = [(int(r), int(c)) for r, c, _ in steps]
        assert all(cells[r - 1][c - 1] == (colour, shape) for r, c in places)
        assert places == sorted(set(places))
        assert [int(i) for *_, i in steps] == list(range(1, expected + 1))
        assert steps or told == f"{name}: none 0."


# --- Text: worked out another way -------------------------------------------------------------


@pytest.mark.parametrize("number", range(25))
def test_each_step_of_arithmetic_has_the_same_value(number: int) -> None:
    example = arithmetic(seed=2, operators=5).items[number].example
    expression = re.fullmatch(r"Modulo 7: (\S+) = \?", example.question)
    assert expression is not None
    assert len(re.findall(r"[+*-]", expression[1])) == 5
    told = (example.rationale or "").removesuffix(".").split(", ")
    pairs, after = zip(*(step.split(": ") for step in told), strict=True)
    for pair in pairs:
        sides = pair.split("=")
        assert eval(sides[0]) % 7 == int(sides[1])
    chain = [expression[1], *after]
    for before, pair in zip(chain, pairs, strict=False):  # its operands stand there as they are
        assert f"({pair.split('=')[0]})" in before
    values = {eval(step) % 7 for step in chain}
    assert values == {int(example.answer or "")}
    assert [len(re.findall(r"[+*-]", step)) for step in chain] == [5, 4, 3, 2, 1, 0]
    assert chain[-1] == example.answer


@pytest.mark.parametrize("number", range(25))
def test_parity_is_kept_digit_by_digit(number: int) -> None:
    example = parity(seed=2).items[number].example
    digits = [int(d) for d in re.findall(r"\d", example.question)]
    steps = re.findall(r"(\d) (odd|even)", example.rationale or "")
    assert [int(d) for d, _ in steps] == digits
    assert [w for _, w in steps] == [
        "odd" if sum(digits[: i + 1]) % 2 else "even" for i in range(10)
    ]
    assert example.answer == steps[-1][1]


# --- Episodes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [2, 5])
def test_fast_binding_shows_each_name_as_often(ways: int) -> None:
    names = set()
    for item in fast_binding(ways=ways, shots=20).items[:10]:
        assert item.shots is not None
        for k in (ways, 2 * ways, 4 * ways):
            counts = Counter(s.answer for s in item.shots[:k])
            assert set(counts.values()) == {k // ways}
            assert sorted(n or "" for n in counts) == list(item.choices)
        assert item.example.answer in item.choices
        names.add(item.choices)
    assert len(names) > 5


def test_fast_bindings_things_look_alike_within_a_name_only() -> None:
    for item in fast_binding(shots=12).items[:10]:
        assert item.shots is not None
        colours: dict[str | None, set[object]] = {}
        for shot in (*item.shots, item.example):
            counted = shot.images[0].getcolors(1 << 16)
            paper, body = sorted(counted, reverse=True)[:2]
            colours.setdefault(shot.answer, set()).add(min(paper[1], body[1]))
        first, second = colours.values()
        assert len(first) == len(second) == 1
        assert first != second
        images = [s.images[0].tobytes() for s in (*item.shots, item.example)]
        assert len(set(images)) == len(images)  # no view is shown twice


def test_one_demonstration_settles_the_operator() -> None:
    for item in operator_induction().items[:40]:
        assert item.shots is not None
        fitting = []
        for sign in "+-*":
            told = [
                re.fullmatch(r"The operator is \w+\. (\d) (.) (\d) = (-?\d+)\.", s.rationale or "")
                for s in (*item.shots[:1], item.example)
            ]
            assert all(told)
            fitting.append(
                all(
                    {"+": int(t[1]) + int(t[3]), "-": int(t[1]) - int(t[3])}.get(
                        sign, int(t[1]) * int(t[3])
                    )
                    == int(t[4])
                    for t in told
                    if t
                )
            )
        assert fitting.count(True) == 1


def test_what_is_to_be_read_is_drawn() -> None:
    for item in ocr().items[:20]:
        image = item.example.images[0]
        ink = image.convert("L").point(lambda v: 255 * (v < 128))
        box = ink.getbbox()
        assert box is not None
        assert box[0] > 0
        assert box[2] < image.width
        assert box[2] - box[0] > 4 * len(item.example.answer or "")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: two_hop(side=1), "a grid of 1 x 1"),
        (lambda: counting(side=32), "6 pixels a cell"),
        (lambda: parity(digits=0), "expected at least 1"),
        (lambda: arithmetic(operators=0), "at least 1 operator"),
        (lambda: fast_binding(ways=1), "expected 2 to 16"),
        (lambda: counting(n=0), "has no items"),
    ],
)
def test_what_cannot_be_made_is_refused(make: type[Task], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
