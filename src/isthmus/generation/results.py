"""What an engine returns, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isthmus.generation.requests import Reason, TokenLogprob
from isthmus.prompt import Prompt


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: Its text, cut before the stop string and stripped.
        ids: Its tokens, stop included.
        reason: "stop" at an end of text or a stop string, "length" where there was no room for
            more, "deadline" where it took too long.
        prompt_tokens: Tokens of the prompt, visual tokens in the text included.
        cached_tokens: How many of these were not computed anew.
        logprob: Sum of the tokens' log-probabilities under the model, at temperature 1.
        tokens: The tokens one by one, with their log-probabilities, where they were asked for.
    """

    text: str
    ids: tuple[int, ...]
    reason: Reason = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprob: float = 0.0
    tokens: tuple[TokenLogprob, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it ended by itself, and not because there was no room for more."""
        return self.reason == "stop"


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    Attributes:
        prompt: The exact prompt.
        completions: As many as samples were asked for.
        prompt_tokens: Tokens of the prompt, visual tokens in the text included.
        cached_tokens: How many of these were not computed anew.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class ChoiceScores:
    """How likely each of some closed answers is after a prompt.

    Attributes:
        logprobs: (K,) sum of each answer's token log-probabilities.
        tokens: (K,) tokens of each answer.
        bytes: (K,) UTF-8 bytes of each answer.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: How many of these were not computed anew.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int

    def by(self, norm: Literal["sum", "token", "byte"] = "sum") -> tuple[float, ...]:
        """Scores under a norm: the sum, or the mean over tokens or bytes."""
        if norm == "sum":
            return self.logprobs
        lengths = self.tokens if norm == "token" else self.bytes
        return tuple(s / max(1, n) for s, n in zip(self.logprobs, lengths, strict=True))

    def best(self, norm: Literal["sum", "token", "byte"] = "sum") -> int:
        """Index of the likeliest answer, the first of equals."""
        scores = self.by(norm)
        return max(range(len(scores)), key=lambda i: scores[i])


@dataclass
class Statistics:
    """What an engine has done so far.

    Attributes:
        prefill_tokens: Tokens of prompts that were computed.
        cached_tokens: Tokens of prompts that were not, since a prefix held them.
        decoded_tokens: Tokens that were generated.
        scored_tokens: Nodes of answers' trees that were computed.
        pictures_encoded, pictures_found: Pictures that were encoded, and that were known.
        prefix_hits, prefix_misses, evictions: Of shared prefixes.
        bytes: Bytes that prefixes and visual tokens take.
        seconds: Time spent.
    """

    prefill_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    scored_tokens: int = 0
    pictures_encoded: int = 0
    pictures_found: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    evictions: int = 0
    bytes: int = 0
    seconds: float = 0.0
