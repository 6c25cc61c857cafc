"""A request that is waiting or running."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from isthmus.generation.constraints import Constraint
from isthmus.generation.prefill import Prefill
from isthmus.generation.requests import Delta, Finished, GenerationRequest, Reason, Usage
from isthmus.generation.rows import Encoded
from isthmus.generation.text_stream import TextStream
from isthmus.generation.ticket import Sink


class Observer(Protocol):
    """Somebody who measures; called from the engine's thread, so it must be quick."""

    def first_token(self, seconds: float) -> None:
        """A request has its first token, so long after it was submitted."""

    def token(self, seconds: float) -> None:
        """A request has a further token, so long after the one before."""

    def queued(self, requests: int) -> None:
        """So many requests wait now."""


@dataclass(eq=False)
class Job:
    """A request that is waiting or running.

    Attributes:
        request: What was asked for.
        sink: Where its events go.
        prompt, images: Its prompt's tokens, and its images by their hashes until it runs.
        most: Most tokens of its text.
        text: Makes text of its tokens.
        chance: Its random numbers.
        submitted: When it was asked for.
        scores: Whether `logprob` is summed up.
        ids: Its tokens so far.
        logprob: Sum of their log-probabilities.
        cached: Tokens of its prompt that were known.
        ended: Why it ended; None while it has not.
    """

    request: GenerationRequest
    sink: Sink
    prompt: Encoded
    images: dict[str, Any]
    most: int
    text: TextStream
    chance: random.Random
    submitted: float
    scores: bool = False
    logprob: float = 0.0
    ended: Reason | None = None
    ids: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    prefill: Prefill | None = None
    cached: int = 0
    first_token_s: float | None = None
    last: float = 0.0
    constraint: Constraint | None = None
    failure: Exception | None = None

    def ended_early(self, now: float) -> Reason | None:
        """Why it must not go on."""
        if self.sink.cancelled:
            return "cancelled"
        late = self.request.deadline_s
        return "deadline" if late is not None and now - self.submitted >= late else None

    def end(self, reason: Reason) -> None:
        """Hands out what is left of its text, and how it ended."""
        self.ended = reason
        text, tokens = self.text.finish()
        if text or tokens:
            self.sink.put(Delta(text, tokens))
        usage = Usage(len(self.prompt.ids), len(self.ids), self.cached)
        total = time.perf_counter() - self.submitted
        self.sink.put(Finished(reason, usage, self.first_token_s, total))


def counted_as(reason: Reason) -> str:
    """The statistic that an end is counted in."""
    return {"cancelled": "cancelled", "deadline": "expired"}.get(reason, "completed")
