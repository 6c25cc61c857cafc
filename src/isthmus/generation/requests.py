"""What a request says, and what comes back for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import Prompt

Reason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt, and how it is to be continued.

    Attributes:
        prompt: The rendered prompt with its images.
        max_new_tokens: Most tokens of the continuation, less where the context ends earlier; 0
            generates nothing.
        temperature: 0 takes the likeliest token.
        top_p: Draw from the likeliest tokens that hold this share (Holtzman et al. 2020).
        top_k: Draw from so many of the likeliest; 0 for all.
        seed: The same seed draws the same text; None for one that nobody knows.
        stop: Strings that end the continuation and are not part of it.
        logprobs: None for no log-probabilities, 0 for those of the chosen tokens, k for those of
            the k likeliest besides.
        deadline_s: Seconds after which the request ends as it is, waiting included.
        presence_penalty: Taken from the logits of tokens that were generated already.
        frequency_penalty: Taken from them once for each time that they were.
        json_schema: A JSON schema, as JSON, that the continuation follows; None for free text.

    Raises:
        ConfigError: If a value is out of range.
        PromptError: If a stop string is empty.

    Example:
        >>> GenerationRequest(prompt=Prompt("Hello"), max_new_tokens=3).temperature
        0.0
    """

    prompt: Prompt
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    deadline_s: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    json_schema: str | None = None

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise PromptError('an empty stop string would end every answer at once: leave "" out')
        penalties = (self.presence_penalty, self.frequency_penalty)
        for name, good, expected in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "None, or 0 or more"),
            ("deadline_s", self.deadline_s is None or self.deadline_s > 0, "more than 0, or None"),
            ("presence_penalty", math.isfinite(penalties[0]), "a finite number"),
            ("frequency_penalty", math.isfinite(penalties[1]), "a finite number"),
        ):
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {expected}")


SEEDS = 1 << 63


def sample_seed(seed: int, number: int) -> int:
    """The seed of one of several samples of a prompt; that of the first is the seed itself.

    Example:
        >>> sample_seed(3, 0)
        3
    """
    return (seed + number * 1_000_003) % SEEDS


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token and how likely it was.

    Attributes:
        token_id: Its id.
        text: Its text, U+FFFD where it holds a part of a character.
        bytes: Its UTF-8 bytes.
        logprob: Its log-probability under the model, at temperature 1 and without penalties.
        top: The likeliest tokens in its place: ids, texts, log-probabilities.
    """

    token_id: int
    text: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A further piece of a continuation: its text, and its tokens if they were asked for."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a request took.

    Attributes:
        prompt_tokens: Tokens of the prompt, visual tokens in the text included.
        completion_tokens: Tokens generated, the one that ended the text included.
        cached_tokens: Tokens of the prompt that were not computed anew.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Finished:
    """How a request ended.

    Attributes:
        reason: "stop" at an end of text or a stop string, "length", "cancelled", "deadline".
        usage: What it took.
        first_token_s: Seconds to its first token, waiting included; None if there was none.
        total_s: Seconds in all.
    """

    reason: Reason
    usage: Usage
    first_token_s: float | None
    total_s: float
