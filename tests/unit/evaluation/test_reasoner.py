"""The recipe of the reasoner: what it trains on is what an evaluation asks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from isthmus.evaluation.answering import Asker, Style
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.task import Item, Task
from isthmus.generation.engine import Completion, Engine
from isthmus.prompts.prompt import END_TAG, Example
from isthmus.prompts.templates import template_named

RECIPE = Path(__file__).parents[3] / "recipes" / "reasoner"
SHOTS = [Example((), f"{i} + 1?", str(i + 1), f"{i} and 1.") for i in range(3)]


@pytest.fixture
def episodes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPE))
    import episodes

    yield episodes
    sys.modules.pop("episodes", None)


class Listening:
    """Says what it is told to, and keeps the prompts."""

    def __init__(self, engine: Engine, *texts: str) -> None:
        self.model, self.texts, self.asked = engine.model, list(texts), []

    def run(self, requests: Any) -> Any:
        self.asked += [r.prompt.text for r in requests]
        return [Completion(self.texts.pop(0), (1,)) for _ in requests]


def asked(engine: Engine, way: str, *texts: str) -> list[str]:
    """The prompts of the last example, the others as demonstrations."""
    shots = [] if way == "zero-cot" else SHOTS[:2]
    item = Item("q", SHOTS[2])
    task = Task("t", "number", [item], template="plain")
    said: Any = Listening(engine, *texts)
    Asker(said, task, Arm("t", len(shots), way), Style()).ask([item], [shots])
    return said.asked


@pytest.mark.parametrize("way", ["none", "cot"])
def test_episodes_are_asked_as_they_were_learned(
    engine: Engine, episodes: ModuleType, way: str
) -> None:
    text = episodes.episode(SHOTS, template_named("plain"), way == "cot")
    whole = "".join(piece for piece, _ in text.pieces)
    (prompt,) = asked(engine, way, "3")
    answer = " 2 and 1. The answer is 3." if way == "cot" else " 3"
    assert whole == f"{prompt}{answer}{END_TAG}"
    learned = [piece for piece, weight in text.pieces if weight and piece != END_TAG]
    assert learned[-1] == answer
    assert len(learned) == (2 if way == "cot" else 3)  # nothing tells the first to reason


def test_the_trigger_is_asked_as_it_was_learned(engine: Engine, episodes: ModuleType) -> None:
    text = episodes.triggered(SHOTS[2], template_named("plain"))
    first, second = asked(engine, "zero-cot", "2 and 1.", "3")
    pieces = [piece for piece, _ in text.pieces]
    assert pieces[0] == first
    assert pieces[:3] == [first, " 2 and 1.", episodes.ENDS]
    assert "".join(p for p in pieces if p != episodes.ENDS) == f"{second} 3.{END_TAG}"


def test_the_evaluations_questions_are_not_trained_on(episodes: ModuleType) -> None:
    template = template_named("plain")
    rng = np.random.default_rng(0)
    drawn = [episodes.draw(rng, template, frozenset()) for _ in range(12)]
    again = np.random.default_rng(0)
    question = drawn[0].pieces[0][0].split("Question: ")[1].split(" Answer:")[0]
    others = [episodes.draw(again, template, frozenset([question])) for _ in range(12)]
    assert any(question in p for t in drawn for p, _ in t.pieces)
    assert not any(question in p for t in others for p, _ in t.pieces)
