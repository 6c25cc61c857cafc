"""Reaching an answer: at once, or in steps.

    none            the answer at once, with or without demonstrations
    cot             demonstrations show their steps (Wei et al. 2022)
    zero-cot        a trigger makes the model reason, a second prompt asks for the answer
                    (Kojima et al. 2022, section 3)
    least-to-most   the question is broken into smaller ones, answered in order
                    (Zhou et al. 2022, section 2)

Each way may be taken several times, with samples, and the answers put to the vote
(self-consistency). Everything is asked for in batches of prompts; the engine computes what they
share once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from isthmus.errors import ConfigError, suggestion
from isthmus.generation.engine import Engine
from isthmus.prompts.answers import AnswerKind, extract
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import Template
from isthmus.reasoning.chains import (
    STOPS,
    TEMPERATURE,
    Questions,
    at_once,
    least_to_most,
    two_stages,
)
from isthmus.reasoning.vote import vote
from isthmus.reasoning.wording import is_korean, trigger_named

__all__ = [
    "STOPS",
    "TEMPERATURE",
    "Asked",
    "Reasoning",
    "Solution",
    "Way",
    "check_shots",
    "solve",
    "trigger_for",
    "way_for",
]

Way = Literal["none", "cot", "zero-cot", "least-to-most"]


@dataclass(frozen=True)
class Reasoning:
    """How answers are reached.

    Attributes:
        way: See the module.
        trigger: What makes the model reason without demonstrations: a name in
            `triggers.TRIGGERS`, or a text of your own.
        samples: Chains for each question, whose answers vote.
        temperature: Of the samples; None is 0.7 for several chains, and 0, greedy, for one.
        top_p: Draw from the likeliest tokens that hold this share.
        seed: Of the samples.
        max_step_tokens: Most tokens of a chain.
        max_new_tokens: Most tokens of an answer.

    Raises:
        ConfigError: If the way is unknown, or there are no samples.
    """

    way: Way = "none"
    trigger: str = "step-by-step"
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    max_step_tokens: int = 256
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ConfigError(
                f'unknown way to reason "{self.way}": {suggestion(self.way, get_args(Way))}'
            )
        if self.samples < 1:
            raise ConfigError(f"got {self.samples} samples, expected at least 1")


@dataclass(frozen=True)
class Solution:
    """An answer and how it was reached.

    Attributes:
        text: The answer as the model wrote it.
        answer: What was found in it, in one spelling; None if it does not parse.
        rationale: The steps, apart from the answer; None if there are none.
        votes: Votes by answer, where there were several chains.
        agreement: The winner's share of the votes.
        unparsed: Share of chains without an answer.
        prompts: Every prompt that the answer was made from, of the chain that won.
        prompt_tokens, cached_tokens, new_tokens: Over all of its prompts and chains.
    """

    text: str
    answer: str | None
    rationale: str | None
    votes: dict[str, int]
    agreement: float | None
    unparsed: float
    prompts: tuple[Prompt, ...]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Asked:
    """What is asked, and how it becomes a prompt.

    Attributes:
        template: Makes prompts.
        kind: What the answers are.
        options: The closed answers of a choice or label.
        instruction: Stands before everything.
        lead: What an answer in the manner of demonstrations begins with; Auto-CoT's begin with
            the trigger.
    """

    template: Template
    kind: AnswerKind = "text"
    options: tuple[str, ...] = ()
    instruction: str = ""
    lead: str = ""

    def prompt(self, query: Example, shots: Sequence[Example], **rest: Any) -> Prompt:
        """The prompt of a question; what else the template takes goes through."""
        return self.template(shots, query, instruction=self.instruction, **rest)

    def closed(self) -> tuple[str, ...]:
        """The options, where the kind has some."""
        return self.options if self.kind in ("choice", "label") else ()


def way_for(question: str, shots: Sequence[Example]) -> Reasoning:
    """What "reason" means where nothing more is said.

    Steps like those of the demonstrations where one shows them; else a trigger in the question's
    language.

    Example:
        >>> way_for("고양이는 몇 마리야?", []).trigger
        'step-by-step-ko'
    """
    way: Way = "cot" if any(s.rationale for s in shots) else "zero-cot"
    return Reasoning(way, trigger_for(question))


def trigger_for(question: str) -> str:
    """The name of the trigger in a question's language.

    Example:
        >>> trigger_for("How many?"), trigger_for("몇 개야?")
        ('step-by-step', 'step-by-step-ko')
    """
    return "step-by-step-ko" if is_korean(question) else "step-by-step"


def check_shots(reasoning: Reasoning, shots: Sequence[Example]) -> None:
    """Whether demonstrations show what a way to reason needs.

    Raises:
        ConfigError: If a chain of thought is wanted and none shows one.
    """
    if reasoning.way == "cot" and not any(s.rationale for s in shots):
        raise ConfigError(
            "chain of thought was asked for, and no demonstration has a rationale: give one, "
            'or take the way "zero-cot", which needs none'
        )


def solve(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    asked: Asked | Sequence[Asked],
) -> list[Solution]:
    r"""Answers questions.

    Args:
        engine: Generates.
        queries: The questions.
        shots: Each one's demonstrations.
        reasoning: How answers are reached.
        asked: What is asked, by all questions or by each.

    Raises:
        ConfigError: If a chain of thought is wanted and no demonstration shows one.
        PromptError: If a demonstration has no answer, or a text contains a tag.

    Example:
        >>> import isthmus as im
        >>> from isthmus.prompts.templates import qa
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> how = Reasoning("zero-cot", max_step_tokens=2, max_new_tokens=2)
        >>> [s] = solve(engine, [Example((), "2 + 3?")], [[]], how, Asked(qa, "number"))
        >>> s.prompts[0].text
        "Q: 2 + 3?\nA: Let's think step by step."
    """
    if not queries:
        return []
    for demonstrations in shots:
        check_shots(reasoning, demonstrations)
    forms = [asked] * len(queries) if isinstance(asked, Asked) else list(asked)
    trigger = trigger_named(reasoning.trigger)
    questions = Questions(engine, queries, shots, reasoning, forms, trigger)
    if reasoning.way in ("none", "cot"):
        chains = at_once(questions)
    elif reasoning.way == "zero-cot":
        chains = two_stages(questions)
    else:
        chains = least_to_most(questions)
    markers = trigger.wording.markers
    after = markers if reasoning.way == "cot" else ("",)
    solutions = []
    for own, count, form in zip(chains, questions.counts, forms, strict=True):
        found = [extract(c.text, form.kind, form.closed(), after=after) for c in own]
        result = vote(found, form.kind)
        chosen = own[result.chosen]
        rationale = chosen.steps.strip() or None
        if reasoning.way == "cot":
            rationale = _before(chosen.text, markers).strip() or None
        solutions.append(
            Solution(
                text=chosen.text,
                answer=result.answer,
                rationale=rationale,
                votes=result.votes if reasoning.samples > 1 else {},
                agreement=result.agreement if reasoning.samples > 1 else None,
                unparsed=result.unparsed,
                prompts=chosen.prompts,
                prompt_tokens=count.prompt,
                cached_tokens=count.cached,
                new_tokens=count.new,
            )
        )
    return solutions


def _before(text: str, markers: Sequence[str]) -> str:
    """A text up to the first of some markers."""
    places = [text.find(m) for m in markers if m in text]
    return text[: min(places)] if places else text
