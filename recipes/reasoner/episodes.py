"""Training texts: single questions and episodes, direct and with steps, of the evaluation's tasks.

One model learns both ways to answer, and which of them is asked for:

| text | what is learned |
|---|---|
| question | the answer at once |
| question, "Let's think step by step." | the steps; then, asked for it, the answer |
| demonstrations with answers, question | the answer at once |
| demonstrations with steps, question | the steps, then "The answer is ..." |

Whether to reason is told by the trigger or by the demonstrations, and by nothing else, so that the
arms of an evaluation differ in the prompt alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isthmus.evaluation.tasks.text import arithmetic, parity
from isthmus.prompts.answers import AnswerKind
from isthmus.prompts.prompt import END_TAG, Example
from isthmus.prompts.template import CONCLUSION
from isthmus.reasoning.wording import trigger_named

TRIGGER = trigger_named("step-by-step")
TRAINING_SEED = 1_000_003
"""The evaluation's items come from small seeds."""
TASKS = {"arithmetic": 0.65, "parity": 0.35}
"""Share of each task's texts."""
KINDS: dict[str, AnswerKind] = {"arithmetic": "number", "parity": "label"}
OPERATORS = (0.3, 0.2, 0.2, 0.3)
"""Share of expressions with one to four operators: single pairs are what steps are made of."""
MOST_SHOTS = 4
ENDS = "\0"
"""A piece of no text: the model is to end here, although the text goes on."""
DIRECT_WEIGHT = 4.0
"""What a token of a direct answer counts for beside one of a rationale: there are far fewer."""
RESULT_WEIGHT = 5.0
"""What the value of a pair counts for in a rationale: the rest is copied, and soon learned."""
RESULT = re.compile(r"(?<==)\d|(?<== )\d+")


@dataclass(frozen=True)
class Text:
    """A training text in pieces.

    Attributes:
        pieces: The text, its parts to be learned with a weight, the others with 0.
    """

    pieces: tuple[tuple[str, float], ...]


def arithmetic_example(rng: np.random.Generator, operators: int) -> Example:
    """A fresh question of arithmetic."""
    seed = int(rng.integers(TRAINING_SEED, 1 << 40))
    return arithmetic(seed, n=1, operators=operators).items[0].example


def parity_example(rng: np.random.Generator) -> Example:
    """A fresh question of parity."""
    seed = int(rng.integers(TRAINING_SEED, 1 << 40))
    return parity(seed, n=1).items[0].example


def draw(
    rng: np.random.Generator,
    render: Callable[..., Any],
    asked: frozenset[str],
    share: float = 1.0,
) -> Text:
    """A training text.

    Args:
        rng: Where it is drawn from.
        render: The template.
        asked: Questions of the evaluation, which are never trained on.
        share: How many texts are of all kinds. The others are single questions with the trigger,
            from which steps are learned soonest.
    """
    task = str(rng.choice(tuple(TASKS), p=tuple(TASKS.values())))
    operators = int(rng.choice((1, 2, 3, 4), p=OPERATORS))

    def fresh() -> Example:
        while True:
            made = parity_example(rng) if task == "parity" else arithmetic_example(rng, operators)
            if made.question not in asked:
                return made

    if rng.random() >= share:
        return triggered(fresh(), render, KINDS[task])
    reasoned = rng.random() < 0.5
    shots = int(rng.integers(1, MOST_SHOTS + 1)) if rng.random() < 0.5 else 0
    if reasoned and not shots:
        return triggered(fresh(), render, KINDS[task])
    return episode([fresh() for _ in range(shots + 1)], render, reasoned)


def weighed(text: str, weight: float) -> list[tuple[str, float]]:
    """A text in pieces, the values of its pairs counting for more."""
    found, last = [], 0
    for match in RESULT.finditer(text):
        found += [(text[last : match.start()], weight), (match.group(), weight * RESULT_WEIGHT)]
        last = match.end()
    return [*found, (text[last:], weight)]


def triggered(example: Example, render: Callable[..., Any], kind: AnswerKind = "number") -> Text:
    """A question with the trigger: its steps and, when it is asked for, the answer."""
    query = replace(example, answer=None, rationale=None)
    prompt = render([], query, lead=TRIGGER.text)
    pieces = (
        (prompt.text, 0.0),
        *weighed(f" {example.rationale}", 1.0),
        (ENDS, 1.0),
        (f" {TRIGGER.extraction(kind)}", 0.0),
        (f" {example.answer}.", 1.0),
        (END_TAG, 1.0),
    )
    return Text(pieces)


def episode(examples: list[Example], render: Callable[..., Any], reasoned: bool) -> Text:
    """Demonstrations and a question, every answer learned that is told how to be given."""
    pieces: list[tuple[str, float]] = []
    before = ""
    for k, example in enumerate(examples):
        query = replace(example, answer=None, rationale=None)
        text = render(examples[:k], query, conclusion=CONCLUSION if reasoned else "").text
        if not text.startswith(before):
            raise ValueError(f"the template changes what stood before: {text!r}")
        pieces.append((text[len(before) :], 0.0))
        told = k > 0 or not reasoned  # the first of worked demonstrations is told by nothing
        weight = (1.0 if reasoned else DIRECT_WEIGHT) if told else 0.0
        answer = f" {example.answer}"
        if reasoned:
            answer = f" {example.rationale} The answer is {example.answer}."
        pieces += [*weighed(answer, weight), (END_TAG, float(told))]
        before = f"{text}{answer}{END_TAG}"
    return Text(tuple(pieces))
