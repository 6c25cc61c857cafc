"""Things of generated scenes: which are held out, and in which drawings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

STYLES = ("openmoji", "noto", "fluent-emoji-flat", "emojione")


@pytest.fixture
def module(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import things

    monkeypatch.setattr(things, "HELD_OUT", 4)
    return things


@pytest.fixture
def things(module: ModuleType) -> Any:
    """Thirty things in all styles; the names of every other pair are shared."""

    def made() -> Iterator[Any]:
        for i in range(30):
            names = (f"thing {i}", f"pair {i // 2}") if i % 4 < 2 else (f"thing {i}",)
            styles = STYLES if i % 5 else STYLES[:3]  # some are not drawn in EmojiOne
            drawings = tuple((f"1F{i:03X}", style) for style in styles)
            yield module.Thing(f"thing {i}", f"things {i}", drawings, names)

    own = module.Things.__new__(module.Things)
    own.__dict__["all"] = {thing.name: thing for thing in made()}
    return own


def test_a_held_out_part_is_drawn_in_one_style_alone(module: ModuleType, things: Any) -> None:
    assert module.STYLE_OF == {"dev": "emojione", "test": "noto"}
    for part, style in module.STYLE_OF.items():
        assert 4 <= len(things.parts[part]) <= 5
        for thing in things.parts[part]:
            ((code, drawn),) = things.drawings(thing, part)
            assert drawn == style
            told = {s: things.is_held_out(code, s) for s in STYLES}
            assert told == {s: s == style for s in STYLES}
    for thing in things.parts["train"]:
        assert things.drawings(thing, "train") == list(thing.drawings)
        assert not any(things.is_held_out(*drawing) for drawing in thing.drawings)


def test_who_is_not_drawn_in_dev_s_style_is_not_of_dev(things: Any) -> None:
    number_of = {part: [int(t.name[6:]) for t in own] for part, own in things.parts.items()}
    assert not any(i % 5 == 0 for i in number_of["dev"])
    assert sorted(i for own in number_of.values() for i in own) == list(range(30))


def test_no_name_is_in_two_parts(things: Any) -> None:
    names = {part: {n for t in own for n in t.names} for part, own in things.parts.items()}
    assert not names["dev"] & names["test"]
    assert not (names["dev"] | names["test"]) & names["train"]


def test_held_out_drawings_are_in_no_record(
    things: Any, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import parts

    monkeypatch.setattr(parts, "Things", lambda root: things)
    rows = [
        {"concept": code, "source": style}
        for own in things.all.values()
        for code, style in own.drawings
    ]
    rows.append({"concept": rows[0]["concept"], "source": "fluent-3d"})
    kept = list(parts.without_held_out_drawings(rows, Path()))
    gone = [row for row in rows if row not in kept]
    assert len(gone) == len(things.parts["dev"]) + len(things.parts["test"])
    assert {row["source"] for row in gone} == {"emojione", "noto"}
