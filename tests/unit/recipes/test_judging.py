"""Lists of names to be judged: where WordNet is clear, and what is right."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EAT, ANIMAL, VEHICLE = "07555863", "00015388", "04524313"
SYNSETS: dict[str, tuple[str, list[str], list[str]]] = {
    EAT: ("13", ["food"], []),
    ANIMAL: ("05", ["animal"], []),
    VEHICLE: ("06", ["vehicle"], []),
    "1": ("13", ["burger"], [EAT]),
    "2": ("05", ["canine"], [ANIMAL]),
    "3": ("05", ["wolf"], ["2"]),
    "4": ("06", ["bus"], [VEHICLE]),
    "5": ("06", ["greenhouse"], []),
    "6": ("05", ["oyster"], [ANIMAL, EAT]),
    "7": ("13", ["roe"], [EAT, ANIMAL]),
    "8": ("05", ["lynx"], [ANIMAL]),
}
JUDGED = {
    "burger": {"eat": True, "animal": False},
    "mango": {"eat": True},
    "bus": {"eat": False, "vehicle": True, "animal": False},
    "wolf": {"animal": True, "vehicle": False},
    "kayak": {"vehicle": True, "wear": False, "instrument": False, "building": False},
    "coat": {"wear": True, "building": False, "instrument": False},
    "lute": {"instrument": True, "wear": False},
    "barn": {"building": True},
}


@pytest.fixture
def judging(recipe_path: Path) -> ModuleType:
    import judging

    return judging


@pytest.fixture
def net(recipe_path: Path) -> Any:
    """WordNet with a dozen synsets."""
    import words

    made = words.WordNet.__new__(words.WordNet)
    made.synsets = SYNSETS
    return made


@pytest.mark.parametrize(
    ("offset", "judged"),
    [
        # of its own category; all files but those that `wear` is open to say no
        ("1", {"eat", "-animal", "-vehicle", "-instrument", "-building"}),
        # by what is two above; one may eat it or not
        ("3", {"animal", "-vehicle", "-instrument", "-building"}),
        # another category of the same file
        ("4", {"vehicle", "-eat", "-animal", "-wear", "-instrument", "-building"}),
        # none of its own file's: who knows what it is
        ("5", {"-eat", "-animal"}),
        # another file, from which some belong to it
        ("6", {"eat", "animal", "-vehicle", "-instrument", "-building"}),
        # above it in WordNet, but in a file of which nothing belongs to it
        ("7", {"eat", "-vehicle", "-instrument", "-building"}),
    ],
)
def test_a_class_is_judged_where_wordnet_is_clear(
    judging: ModuleType, net: Any, offset: str, judged: set[str]
) -> None:
    found = judging.judged_class(offset, net)
    assert {name if belongs else f"-{name}" for name, belongs in found.items()} == judged


def test_no_name_is_that_of_a_held_out_thing(
    judging: ModuleType, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def thing(name: str, part: str, names: list[str], own: list[str]) -> dict[str, Any]:
        unclear = [c for c in judging.CATEGORIES if c not in ("animal", "eat")]
        return {"name": name, "part": part, "names": names, "is": own, "unclear": unclear}

    def named(name: str, number: str, *more: str) -> dict[str, Any]:
        return {"name": name, "names": [name, *more], "wnid": f"n{number}"}

    things = [
        thing("burger", "train", ["burger"], ["eat"]),
        thing("wild cat", "test", ["wild cat", "lynx"], ["animal"]),
        thing("bus", "dev", ["bus"], []),
    ]
    classes = [
        named("burger", "4"),  # the thing of this name is heard, and not the class
        named("wolf", "3"),
        named("lynx", "8"),  # the thing's other name
        named("coach", "4", "bus"),  # the class's other name
    ]
    monkeypatch.setattr(judging, "listing", lambda root: iter(things))
    monkeypatch.setattr(judging.drawings, "records_of", lambda root, name: classes)
    monkeypatch.setattr(judging.packages, "fetch", lambda name, root: root)
    monkeypatch.setattr(judging.words, "wordnet", lambda folder: net)
    found = judging.judged_names(Path())
    assert set(found) == {"burger", "wolf"}
    assert found["burger"] == {"eat": True, "animal": False}
    assert found["wolf"]["animal"] is True


@pytest.mark.parametrize("korean", [False, True])
def test_the_answer_is_how_many_steps_say_yes(
    judging: ModuleType, monkeypatch: pytest.MonkeyPatch, korean: bool
) -> None:
    yes, end_of, lead = ("yes", "So", "Let's think step by step.")
    if korean:
        yes, end_of, lead = ("예", "그러므로", "차근차근 생각해봐.")
    wordings = judging.KOREAN_WORDINGS if korean else judging.WORDINGS
    images = [{"image": f"{i}.png"} for i in range(9)]
    everything = JUDGED | {"box": dict.fromkeys(judging.CATEGORIES, False)}
    monkeypatch.setattr(judging, "judged_names", lambda root: everything)
    monkeypatch.setattr(judging.drawings, "records_of", lambda root, name: images)
    records = list(judging.judged_lists(Path(), 300, korean=korean))
    assert len(records) == 300
    beginnings = {w.partition("{")[0]: category for category, w in wordings.items()}
    lengths, answers, asked = set(), set(), set()
    for record in records:
        beginning, _, listed = record["question"].partition(": ")
        category = beginnings[f"{beginning}: "]
        names = listed.removesuffix("?").split(", ")
        *steps, end = re.findall(r"[^.]+\.", record["answer"])
        told = dict(step.strip(" .").split(": ") for step in steps)
        assert list(told) == names
        assert {n: said == yes for n, said in told.items()} == {
            n: everything[n][category] for n in names
        }
        assert end.strip() == f"{end_of} {record['result']}."
        assert record["result"] == str([*told.values()].count(yes))
        assert record["lead"] == lead
        lengths.add(len(names))
        answers.add(record["result"])
        asked.add(category)
    assert max(lengths) <= judging.MOST
    assert {"0", "1", "2"} <= answers
    assert asked == set(wordings)
    assert {r["image"] for r in records} == {r["image"] for r in images}
    assert records == list(judging.judged_lists(Path(), 300, korean=korean))
