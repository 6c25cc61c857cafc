"""Judgements of lists of names: "How many of these can one eat: hamburger, greenhouse, cucumber?".

They are answered in steps, name by name, as questions of two hops about a scene are. A scene has
two judgements among many other words; here they are all there is. An image stands before each list,
since the adapters act only in sight of one. It has nothing to do with the list.

Names are those of training things and of ImageNet's classes, but of none that is called like a
thing held out. A class is judged only where WordNet is clear. It belongs to a category that is
above it. It belongs to no other category of its file, and to none of another file, but for those
that `ELSEWHERE` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import packages
import words
from scene_sets import led
from steps import CATEGORY_WEIGHTS, TwoHop
from things import CATEGORIES, listing

WORDINGS = {
    "eat": "How many of these can one eat: {names}?",
    "animal": "How many of these are animals: {names}?",
    "vehicle": "How many of these are vehicles: {names}?",
    "wear": "How many of these can one wear: {names}?",
    "instrument": "How many of these are musical instruments: {names}?",
    "building": "How many of these are buildings: {names}?",
}
KOREAN_WORDINGS = {
    "eat": "다음 중 먹을 수 있는 것은 몇 개야: {names}?",
    "animal": "다음 중 동물은 몇 마리야: {names}?",
    "vehicle": "다음 중 탈것은 몇 대야: {names}?",
    "wear": "다음 중 몸에 걸칠 수 있는 것은 몇 개야: {names}?",
    "instrument": "다음 중 악기는 몇 개야: {names}?",
    "building": "다음 중 건물은 몇 채야: {names}?",
}
MOST = 5
FILES = {"eat": ("13",), "animal": ("05",)} | dict.fromkeys(
    ("vehicle", "wear", "instrument", "building"), ("06",)
)
"""Category to WordNet's files of what belongs to it."""
ELSEWHERE = {"eat": ("05", "20"), "wear": ("05", "13", "20")}
"""Category to other files of which some things belong to it: a lobster is eaten, a lei worn."""


def judged_class(offset: str, net: words.WordNet) -> dict[str, bool]:
    """Category to whether a synset belongs to it, where WordNet is clear."""
    above = {offset, *net.ancestors(offset)}
    file = net.synsets[offset][0]
    belongs = {category: bool(above & set(roots)) for category, (_, roots) in CATEGORIES.items()}
    found: dict[str, bool] = {}
    for category, own in belongs.items():
        rival = any(
            belongs[other] and file in FILES[other] and file in FILES[category]
            for other in belongs
            if other != category
        )
        elsewhere = file not in FILES[category] and file not in ELSEWHERE.get(category, ())
        if own != (rival or elsewhere):
            found[category] = own
    return found


def judged_names(root: Path) -> dict[str, dict[str, bool]]:
    """Name to its judgements; where a thing and a class share one, the thing's."""
    rows = list(listing(root))
    held_out = {n for r in rows if r["part"] != "train" for n in (r["name"], *r["names"])}
    net = words.wordnet(packages.fetch("wordnet-base", root))
    found = {
        row["name"]: judged_class(row["wnid"][1:], net)
        for row in drawings.records_of(root, "imagenet-names")
        if not held_out & {row["name"], *row["names"]}
    }
    for row in rows:
        if row["part"] == "train":
            clear = [c for c in CATEGORIES if c not in row["unclear"]]
            found[row["name"]] = {c: c in row["is"] for c in clear}
    return {name: own for name, own in found.items() if own}


def judged_lists(root: Path, count: int, *, korean: bool = False) -> Iterator[dict[str, Any]]:
    """Questions about lists of names, answered in steps behind the trigger.

    Args:
        root: The data folder, with drawings to stand before the lists.
        count: How many.
        korean: Whether they are asked and judged in Korean. Names stay English.
    """
    names = judged_names(root)
    images = [row["image"] for row in drawings.records_of(root, "train-emoji")]
    weights = np.array([CATEGORY_WEIGHTS[category] for category in WORDINGS])
    members = {
        category: {
            b: [n for n, own in names.items() if own.get(category) is b] for b in (True, False)
        }
        for category in WORDINGS
    }
    rng = np.random.default_rng(int(korean))
    for _ in range(count):
        category = list(WORDINGS)[int(rng.choice(len(WORDINGS), p=weights / weights.sum()))]
        listed: dict[str, bool] = {}
        for _ in range(int(rng.integers(1, MOST + 1))):
            belongs = bool(rng.random() < 0.5)
            own = members[category][belongs]
            listed[own[int(rng.integers(len(own)))]] = belongs
        hop = hop_of(category, listed, korean=korean)
        image = images[int(rng.integers(len(images)))]
        yield led(image, hop, hop.trigger, hop.rationale) | {"source": "judged"}


def hop_of(category: str, listed: dict[str, bool], *, korean: bool = False) -> TwoHop:
    """The question about a list, given whether each of its names belongs to the category."""
    answer = str(sum(listed.values()))
    yes, no = ("예", "아니요") if korean else ("yes", "no")
    steps = [f"{name}: {yes if belongs else no}." for name, belongs in listed.items()]
    steps.append(f"그러므로 {answer}." if korean else f"So {answer}.")
    wording = (KOREAN_WORDINGS if korean else WORDINGS)[category]
    question = wording.format(names=", ".join(listed))
    return TwoHop(question, answer, " ".join(steps), category, "list", korean)
