"""Questions of two hops about a scene, and the steps to their answers.

"How many of the things on the left can one eat?": the steps say what is there, judge each thing and
add. Half of the training records are asked at once, and half in steps, which the prompt alone
tells: by a trigger, or by demonstrations that show their steps. What is trained is letter by letter
what `isthmus ask --reasoning zero-cot` and `--reasoning cot` prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scenes import MOST, PLACES, Scene
from things import Thing

from isthmus.reasoning.method import trigger_for
from isthmus.reasoning.wording import trigger_named

REGIONS = {
    "left": ("on the left", "왼쪽"),
    "right": ("on the right", "오른쪽"),
    "top": ("at the top", "위쪽"),
    "bottom": ("at the bottom", "아래쪽"),
    "picture": ("in the picture", "그림"),
}
"""Regions, and how they are called in English and in Korean."""
WORDINGS = {
    "eat": (
        "How many of the things {region} can one eat?",
        "How many things {region} can you eat?",
        "Of the things {region}, how many can be eaten?",
    ),
    "animal": (
        "How many of the things {region} are animals?",
        "Of the things {region}, how many are animals?",
        "How many animals are {region}?",
    ),
    "vehicle": (
        "How many of the things {region} are vehicles?",
        "Of the things {region}, how many are vehicles?",
        "How many vehicles are {region}?",
    ),
    "wear": (
        "How many of the things {region} can one wear?",
        "How many things {region} can you wear?",
        "Of the things {region}, how many can be worn?",
    ),
    "instrument": (
        "How many of the things {region} are musical instruments?",
        "Of the things {region}, how many are musical instruments?",
        "How many musical instruments are {region}?",
    ),
    "building": (
        "How many of the things {region} are buildings?",
        "Of the things {region}, how many are buildings?",
        "How many buildings are {region}?",
    ),
}
"""How each category is asked. An evaluation asks the first; training draws one of them."""
KOREAN_WORDINGS = {
    "eat": "{region}에 있는 것 중 먹을 수 있는 것은 몇 개야?",
    "animal": "{region}에 있는 것 중 동물은 몇 마리야?",
    "vehicle": "{region}에 있는 것 중 탈것은 몇 대야?",
    "wear": "{region}에 있는 것 중 몸에 걸칠 수 있는 것은 몇 개야?",
    "instrument": "{region}에 있는 것 중 악기는 몇 개야?",
    "building": "{region}에 있는 것 중 건물은 몇 채야?",
}
"""The same in Korean. Names stay English, since they come from the connector as English words."""
CATEGORY_WEIGHTS = {
    "eat": 0.3,
    "animal": 0.25,
    "vehicle": 0.15,
    "wear": 0.15,
    "instrument": 0.05,
    "building": 0.1,
}
NONE_THERE, AGAIN = 0.1, 0.12
"""Shares of zeros in a region without anything in it, and of things that are there already."""
LEAST_MEMBERS = 5
"""Things that a category must have in a part, to be asked about there."""


@dataclass(frozen=True)
class TwoHop:
    """A question of two hops.

    Attributes:
        question: What is asked.
        answer: What is right, a number.
        rationale: The steps to it.
        category: What is counted.
        region: Where.
        korean: Whether all of it is in Korean.
    """

    question: str
    answer: str
    rationale: str
    category: str
    region: str
    korean: bool = False

    @property
    def trigger(self) -> str:
        """The trigger that `zero-cot` takes for the question."""
        return trigger_named(trigger_for(self.question)).text

    def asks_for_answer(self, kind: Any) -> str:
        """What the answer begins with when `zero-cot` asks for it, behind the steps."""
        trigger = trigger_named(trigger_for(self.question))
        return trigger.answer_lead(f" {self.rationale}", kind)

    def worked(self, *, triggered: bool = False) -> str:
        """Steps and answer as a worked demonstration shows them, the trigger before them or not."""
        conclusion = trigger_named(trigger_for(self.question)).wording.conclusion
        before = f"{self.trigger} " if triggered else ""
        return f"{before}{self.rationale} {conclusion.format(answer=self.answer)}"


def inside(place: str, region: str) -> bool:
    """Whether a place is in a region. The middle is on no side.

    Example:
        >>> inside("top left", "top"), inside("middle", "left"), inside("middle", "picture")
        (True, False, True)
    """
    return region == "picture" or region in place.split()


def two_hop(
    scene: Scene, category: str, region: str, *, wording: int = 0, korean: bool = False
) -> TwoHop:
    """A question about a scene, whose things are all judged.

    Args:
        scene: The scene.
        category: A key of `WORDINGS`.
        region: A key of `REGIONS`.
        wording: Which of the wordings.
        korean: Whether it is asked in Korean.
    """
    things = [p.thing for p in scene.placed if inside(p.place, region)]
    count = sum(t.judged[category] for t in things)
    english, hangul = REGIONS[region]
    if korean:
        question = KOREAN_WORDINGS[category].format(region=hangul)
        steps = [f"{hangul}: {', '.join(t.name for t in things) or '없음'}."]
        steps += [f"{t.name}: {'예' if t.judged[category] else '아니요'}." for t in things]
        steps.append(f"그러므로 {count}.")
    else:
        question = WORDINGS[category][wording].format(region=english)
        steps = [f"{english.capitalize()}: {', '.join(t.name for t in things) or 'nothing'}."]
        steps += [f"{t.name}: {'yes' if t.judged[category] else 'no'}." for t in things]
        steps.append(f"So {count}.")
    return TwoHop(question, str(count), " ".join(steps), category, region, korean)


def categories_of(pool: Sequence[Thing]) -> dict[str, float]:
    """The categories that can be asked about with some things, and how often each is."""
    return {
        category: weight
        for category, weight in CATEGORY_WEIGHTS.items()
        if sum(t.judged.get(category, False) for t in pool) >= LEAST_MEMBERS
    }


def planned(
    rng: np.random.Generator, pool: Sequence[Thing], number: int
) -> tuple[list[tuple[Thing, str | None]], str, str]:
    """Things and places of a scene, and the category and the region that it is made for.

    Answers of a region come up as often as each other: 0 to 2 on a side, 0 to 4 in the picture.
    Elsewhere in the picture half of the things belong to the category too.

    Args:
        rng: Where they are drawn from.
        pool: Things to draw from.
        number: Decides region and answer, in turn.
    """
    weights = categories_of(pool)
    share = np.array(list(weights.values())) / sum(weights.values())
    region = list(REGIONS)[number % len(REGIONS)]
    while True:
        category = list(weights)[int(rng.choice(len(weights), p=share))]
        belongs = _belonging(rng, region, number // len(REGIONS))
        found = _filled(rng, pool, category, belongs)
        if found is not None:
            return found, category, region


def _belonging(rng: np.random.Generator, region: str, turn: int) -> dict[str, bool]:
    """Places, and whether what stands there belongs to the category.

    Args:
        rng: Where they are drawn from.
        region: The region that is asked about.
        turn: Decides how many in it belong.
    """
    within = [p for p in PLACES if inside(p, region)]
    outside = [p for p in PLACES if p not in within]
    room = min(len(within), MOST)
    count = turn % (room + 1)
    others = int(rng.integers(0 if count else 1, room - count + 1)) if count < room else 0
    if not count and outside and rng.random() < NONE_THERE:
        others = 0
    most = min(len(outside), MOST - count - others)
    beyond = int(rng.integers(min(most, int(count + others < 2)), most + 1))
    belongs = [True] * count + [False] * others
    belongs += [bool(rng.random() < 0.5) for _ in range(beyond)]
    places = [str(p) for p in rng.permutation(within)[: count + others]]
    places += [str(p) for p in rng.permutation(outside)[:beyond]]
    return dict(zip(places, belongs, strict=True))


def _filled(
    rng: np.random.Generator, pool: Sequence[Thing], category: str, belongs: dict[str, bool]
) -> list[tuple[Thing, str | None]] | None:
    """A thing for each place; None if there are too few that go together."""
    found: list[tuple[Thing, str | None]] = []
    for place, own in belongs.items():
        there = [t for t, _ in found]
        again = [t for t in there if t.judged[category] is own and t.plural]
        good = [t for t in pool if t.judged.get(category) is own]
        fresh = [t for t in good if t not in there and not any(t.clashes(o) for o in there)]
        choices = again if again and rng.random() < AGAIN else fresh
        if not choices:
            return None
        found.append((choices[int(rng.integers(len(choices)))], place))
    return found
