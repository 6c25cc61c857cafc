"""What the engine's thread does: prompts enter, every row gets a token, rows leave."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from torch import Tensor

from isthmus.errors import IsthmusError, error_place
from isthmus.generation.constraints import Constraint
from isthmus.generation.lanes import Apart, takes_lanes
from isthmus.generation.prefill import Prefill, Prefiller
from isthmus.generation.requests import (
    Delta,
    Finished,
    GenerationRequest,
    Reason,
    TokenLogprob,
    Usage,
)
from isthmus.generation.rows import Encoded, Rows
from isthmus.generation.sampling import Draw, choose, penalized
from isthmus.generation.text_stream import TextStream, TokenTexts
from isthmus.generation.ticket import Ticket
from isthmus.generation.tiers import Tiers
from isthmus.model import VisionLanguageModel
from isthmus.prompt import END_TAG, IMAGE_TAG

_log = logging.getLogger(__name__)


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
    """A request that is waiting or running."""

    request: GenerationRequest
    ticket: Ticket
    prompt: Encoded
    pictures: dict[str, Any]
    most: int
    text: TextStream
    chance: random.Random
    submitted: float
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
        if self.ticket.cancelled:
            return "cancelled"
        late = self.request.deadline_s
        return "deadline" if late is not None and now - self.submitted >= late else None


class RunningBatch:
    """The requests that are being computed, and the model's side of them. One thread's own.

    Args:
        model: The model.
        max_batch: Most requests that are decoded together.
        memory: Most bytes kept for later requests.
        prefill_tokens: Most tokens of prompts that are computed between two decoding steps.
        observer: Is told of latencies.

    Attributes:
        running: Requests that are decoded, by lane.
        entering: The request whose prompt is being computed.
        shares: Whether rows share a pass.
        prefiller: Computes prompts and keeps what was computed.
        decoded, steps: Tokens generated and steps taken so far.
        ended: Requests by how they ended.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        max_batch: int,
        memory: int,
        prefill_tokens: int,
        observer: Observer | None,
    ) -> None:
        self.model = model
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self.running: list[Job] = []
        self.entering: Job | None = None
        self.shares = takes_lanes(model)
        self.prefiller = Prefiller(model, memory)
        self.decoded = self.steps = 0
        self.ended = {"completed": 0, "cancelled": 0, "expired": 0, "failed": 0}
        self._counting = Lock()
        self._observer = observer
        special = model.special_tokens
        self._ends = frozenset({*model.language.end_ids(), special.end_id})
        tags = (IMAGE_TAG, END_TAG)
        self._texts = TokenTexts(model.language.tokenizer, tags, special.image_id)
        self._rows = self._new_rows()

    @property
    def bytes(self) -> int:
        """Bytes that the running requests' keys and values take."""
        return self._rows.bytes

    def _new_rows(self) -> Tiers | Apart:
        return Tiers(self.model) if self.shares else Apart(self.model)

    def sweep(self) -> None:
        """Ends what was cancelled or is late."""
        now = time.perf_counter()
        if self.entering is not None and (reason := self.entering.ended_early(now)):
            job, self.entering = self.entering, None
            self.end(job, reason)
        for lane in reversed(range(len(self.running))):
            if reason := self.running[lane].ended_early(now):
                self._leave(lane, reason)

    def admit(self, following: Callable[[], Job | None]) -> None:
        """Prefills prompts, no more tokens of them than may be between two steps.

        Args:
            following: Hands out the next request that waits; None when none does.
        """
        left = self.prefill_tokens
        while left > 0 and len(self.running) < self.max_batch:
            job = self.entering
            if job is None:
                job = self.entering = following()
                if job is None:
                    return
            try:
                if job.prefill is None:
                    job.prefill = self.prefiller.begin(job.prompt, job.pictures)
                    job.cached = job.prefill.cached
                before = job.prefill.left
                # with nobody to hold up, there is no reason for pieces
                done = self.prefiller.advance(job.prefill, left if self.running else before)
                left -= before - job.prefill.left
                if done is None:
                    continue
                job.prefill = None
                self._enter(job, *done)
                self.entering = None  # not before: whoever closes the engine looks for it
            except Exception as error:  # one request's failure is no other's
                self.entering = None
                self._fail(job, _reported(error))

    def _enter(self, job: Job, rows: Rows, logits: Tensor) -> None:
        """Takes a prefilled row's first token and lets it join the others."""
        job.pictures = {}
        if self.shares:  # others may write to no states that are copied on joining
            self.prefiller.keep(job.prompt.symbols, rows.states)
        [reason] = self._choose([job], logits)
        if reason is not None:
            self.end(job, reason)
            return
        self._rows.join(rows)
        self.running.append(job)

    def step(self) -> None:
        """One more token for each running row."""
        logits = self._rows.step([job.ids[-1] for job in self.running])
        self.steps += 1
        reasons = self._choose(self.running, logits)
        for lane in reversed(range(len(reasons))):
            reason = reasons[lane]
            if reason is not None:
                self._leave(lane, reason)

    def _choose(self, jobs: list[Job], logits: Tensor) -> list[Reason | None]:
        """Takes a token for each row; why it is the last one, or None."""
        logits = logits.float()
        asked = [job.request for job in jobs]
        draws = [
            Draw(r.temperature, r.top_p, r.top_k, j.chance.random() if r.temperature else 0.0)
            for r, j in zip(asked, jobs, strict=True)
        ]
        less = penalized(
            logits,
            [job.counts for job in jobs],
            [r.presence_penalty for r in asked],
            [r.frequency_penalty for r in asked],
        )
        bound = [(row, job.constraint) for row, job in enumerate(jobs) if job.constraint]
        if bound:
            less = less.clone()
            for row, constraint in bound:
                less[row] = constraint.masked(less[row])
        tokens = choose(less, draws)
        now = time.perf_counter()
        self.decoded += len(tokens)
        return [
            self._take(job, token, logits[row], now)
            for row, (job, token) in enumerate(zip(jobs, tokens, strict=True))
        ]

    def _take(self, job: Job, token: int, logits: Tensor, now: float) -> Reason | None:
        """Hands a token's text on; why it is the last one, or None."""
        job.ids.append(token)
        if job.constraint is not None and token not in self._ends:
            try:
                job.constraint.take(token)
            except Exception as error:  # one request's failure is no other's
                job.failure = _reported(error)
                return "stop"
        if job.request.presence_penalty or job.request.frequency_penalty:
            job.counts[token] = job.counts.get(token, 0) + 1
        with suppress(Exception):  # whoever measures must not stop what is measured
            self._observe(job, now)
        if job.first_token_s is None:
            job.first_token_s = now - job.submitted
        job.last = now
        if token in self._ends:
            return "stop"
        text, tokens = job.text.push(token, self._scored(job.request.logprobs, token, logits))
        if text or tokens:
            job.ticket.put(Delta(text, tokens))
        if job.text.stopped:
            return "stop"
        return "length" if len(job.ids) >= job.most else None

    def _observe(self, job: Job, now: float) -> None:
        if self._observer is None:
            return
        if job.first_token_s is None:
            self._observer.first_token(now - job.submitted)
        else:
            self._observer.token(now - job.last)

    def _scored(self, asked: int | None, token: int, logits: Tensor) -> TokenLogprob | None:
        """A token with its log-probability, if that was asked for."""
        if asked is None:
            return None
        known = logits.log_softmax(dim=-1)
        top: tuple[tuple[int, str, float], ...] = ()
        if asked:
            values, ids = known.topk(min(asked, len(known)))
            top = tuple(
                (i, self._texts(i)[0], v)
                for i, v in zip(ids.tolist(), values.tolist(), strict=True)
                if v > -math.inf
            )
        text, raw = self._texts(token)
        return TokenLogprob(token, text, raw, float(known[token]), top)

    # --- how requests end -----------------------------------------------------------------------

    def _leave(self, lane: int, reason: Reason) -> None:
        """Ends a running request; what was computed for it is kept for the turn that follows."""
        job = self.running[lane]
        fed = self._rows.lengths[lane] - len(job.prompt.ids)
        symbols = (*job.prompt.symbols, *job.ids[:fed])
        try:
            self.prefiller.keep(symbols, self._rows.states(lane), instead=job.prompt.symbols)
        except Exception as error:  # no room for it, for instance: the request has its answer
            _log.warning("what was computed for a request is not kept", exc_info=error)
        self._rows.leave(lane)
        last = self.running.pop()
        if lane < len(self.running):
            self.running[lane] = last
        self.end(job, reason)

    def end(self, job: Job, reason: Reason) -> None:
        """Hands out what is left of a request's text, and how it ended."""
        if job.failure is not None:
            self._fail(job, job.failure)
            return
        text, tokens = job.text.finish()
        if text or tokens:
            job.ticket.put(Delta(text, tokens))
        name = {"cancelled": "cancelled", "deadline": "expired"}.get(reason, "completed")
        self._count(name)
        usage = Usage(len(job.prompt.ids), len(job.ids), job.cached)
        total = time.perf_counter() - job.submitted
        job.ticket.put(Finished(reason, usage, job.first_token_s, total))

    def _fail(self, job: Job, error: Exception) -> None:
        self._count("failed")
        job.ticket.put(error)

    def _count(self, name: str) -> None:
        """Counts an end; a request that waits is ended by its asker's thread."""
        with self._counting:
            self.ended[name] += 1

    def fail_running(self, error: Exception) -> None:
        """A step failed: its rows cannot go on, the engine can."""
        jobs, self.running = self.running, []
        self._rows = self._new_rows()
        error = _reported(error)
        for job in jobs:
            self._fail(job, error)


def _reported(error: Exception) -> Exception:
    """An error for the asker, whose way through the code is told to the log alone.

    Whoever keeps an error keeps the frames it went through, and with them requests and states.
    """
    if not isinstance(error, IsthmusError):
        _log.error("a request failed: %s", error_place(error))  # its message may quote it
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
