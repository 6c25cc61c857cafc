"""How an answer is reached: at once or in steps, in one chain or by the vote of several.

    none            the answer at once, with or without demonstrations
    cot             demonstrations show their steps (Wei et al. 2022)
    zero-cot        a trigger makes the model reason, a second prompt asks for the answer
                    (Kojima et al. 2022, section 3)
    least-to-most   the question is broken into smaller ones, answered in order
                    (Zhou et al. 2022, section 2)

Each way may be taken several times, with samples, and the answers put to the vote
(self-consistency, Wang et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from isthmus.errors import ConfigError, suggestion
from isthmus.generation.requests import GenerationRequest, sample_seed
from isthmus.prompts.prompt import Example, Prompt
from isthmus.reasoning.wording import Trigger, is_korean, trigger_named

Way = Literal["none", "cot", "zero-cot", "least-to-most"]
TEMPERATURE = 0.7
"""Of several chains, where none is given (Wang et al. 2022, section 3.1)."""


@dataclass(frozen=True)
class Reasoning:
    """How answers are reached.

    Attributes:
        way: See the module.
        trigger: What makes the model reason without demonstrations: a name in
            `wording.TRIGGERS`, or a text of your own; None is "step by step" in the question's
            language.
        samples: Chains for each question, whose answers vote.
        temperature: Of the chains; None is 0.7 for several, and 0, greedy, for one. What follows a
            chain, its answer, is always greedy.
        top_p: Draw from the likeliest tokens that hold this share (Holtzman et al. 2020).
        top_k: Draw from so many of the likeliest tokens; 0 for all.
        seed: Of the chains, each of which draws from a seed of its own.
        max_rationale_tokens: Most tokens of the steps, or of each part's answer.
        max_new_tokens: Most tokens of an answer.
        max_chain_tokens: Most tokens of the steps and the answer of one chain together; None for
            no such bound.

    Raises:
        ConfigError: If the way is unknown, or a number is out of range.

    Example:
        >>> Reasoning("zero-cot", samples=9).drawn_at
        0.7
    """

    way: Way = "none"
    trigger: str | None = None
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_rationale_tokens: int = 256
    max_new_tokens: int = 32
    max_chain_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ConfigError(
                f'unknown way to reason "{self.way}": {suggestion(self.way, get_args(Way))}'
            )
        temperature = 0.0 if self.temperature is None else self.temperature
        for name, good, expected in (
            ("samples", self.samples >= 1, "at least 1"),
            ("temperature", 0 <= temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("max_rationale_tokens", self.max_rationale_tokens >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            (
                "max_chain_tokens",
                self.max_chain_tokens is None or self.max_chain_tokens >= 1,
                "None, or at least 1",
            ),
        ):
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {expected}")
        if self.samples > 1 and self.temperature is not None and self.temperature <= 0:
            raise ConfigError(
                f"{self.samples} samples at temperature {self.temperature} would all be the same: "
                "set temperature above 0, or leave it out"
            )

    @property
    def drawn_at(self) -> float:
        """The temperature of the chains; 0 is greedy."""
        usual = TEMPERATURE if self.samples > 1 else 0.0
        return usual if self.temperature is None else self.temperature

    def trigger_of(self, question: str) -> Trigger:
        """The trigger for a question.

        Raises:
            ConfigError: If there is none of that name.
        """
        return trigger_named(self.trigger or trigger_for(question))

    def request(
        self, prompt: Prompt, most: int, stop: Sequence[str], *, chain: int | None
    ) -> GenerationRequest:
        """What an engine is asked for.

        Args:
            prompt: The prompt.
            most: Most tokens.
            stop: Strings that end them.
            chain: Number of the chain that is drawn; None reads off the likeliest text.
        """
        request = GenerationRequest(prompt=prompt, max_new_tokens=most, stop=tuple(stop))
        if chain is None:
            return request
        return replace(
            request,
            temperature=self.drawn_at,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=sample_seed(self.seed, chain),
        )


def reasoning_for(
    reasoning: str | Reasoning | None, shots: Sequence[Example] = (), **given: Any
) -> Reasoning:
    """How an answer is reached, from what somebody asks for.

    Args:
        reasoning: None for an answer at once; a way's name; "auto" for steps like those of the
            demonstrations where one shows some, else after a trigger; or all of it.
        shots: The demonstrations.
        **given: Fields of a `Reasoning` that take the place of its own; None leaves it.

    Raises:
        ConfigError: If the way is unknown, a number out of range, or the demonstrations do not
            show what the way needs.

    Example:
        >>> how = reasoning_for("auto", samples=3, seed=None)
        >>> how.way, how.samples, how.seed
        ('zero-cot', 3, 0)
    """
    if not isinstance(reasoning, Reasoning):
        if reasoning == "auto":
            reasoning = "cot" if any(s.rationale for s in shots) else "zero-cot"
        reasoning = Reasoning(reasoning or "none")  # type: ignore[arg-type]
    named = {name: value for name, value in given.items() if value is not None}
    reasoning = replace(reasoning, **named)
    check_shots(reasoning, shots)
    return reasoning


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
