"""What an engine returns, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isthmus.generation.requests import Reason, TokenLogprob
from isthmus.prompts.prompt import Prompt


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
    def new_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.ids)

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


@dataclass(frozen=True)
class Statistics:
    """What an engine does now, and has done so far.

    Attributes:
        queued, running: Requests that wait, and that are computed now.
        completed, cancelled, expired, failed: Requests by how they ended; `completed` are those
            that came to their own end, `expired` those whose deadline passed.
        prefill_tokens: Tokens of prompts that were computed.
        cached_tokens: Tokens of prompts that were not, since a prefix held them.
        decoded_tokens: Tokens that were generated.
        scored_tokens: Nodes of closed answers' trees that were computed.
        steps: Decoding steps, of however many rows.
        images_encoded, images_found: Images that were encoded, and that were known.
        prefix_hits, prefix_misses: Prompts whose beginning was known, and was not.
        evictions: Prefixes that had to go.
        bytes: Bytes that prefixes and visual tokens take.
        running_bytes: Bytes that the running requests' keys and values take.
        rows_together: Whether rows of different requests are decoded in one pass, or row by row
            since the language model's structure forbids it (`structure.takes_lanes`); None as long
            as that was of no matter.
        seconds: Seconds spent in `generate`, `run` and `score` of an `Engine`.
    """

    queued: int = 0
    running: int = 0
    completed: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    scored_tokens: int = 0
    steps: int = 0
    images_encoded: int = 0
    images_found: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    evictions: int = 0
    bytes: int = 0
    running_bytes: int = 0
    rows_together: bool | None = None
    seconds: float = 0.0
