"""The core of generation: prompts enter, every row gets a token, rows leave.

Whoever drives it takes turns: `Engine` in the caller's thread until all is drained, `ServingEngine`
in a thread of its own for as long as it lives.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from isthmus.errors import IsthmusError, error_place
from isthmus.generation.apart import Apart
from isthmus.generation.decoding import Decoding
from isthmus.generation.graphs import graphs_for
from isthmus.generation.job import Job, Observer, counted_as
from isthmus.generation.llama_cpp import CacheFull, decoder_of
from isthmus.generation.llama_rows import LlamaDecoding, LlamaRows
from isthmus.generation.prefill import Prefiller
from isthmus.generation.requests import Delta, Reason, TokenLogprob
from isthmus.generation.results import Statistics
from isthmus.generation.rows import Encoded, Rows
from isthmus.generation.sampling import Draw, choose, penalized
from isthmus.generation.structure import takes_lanes
from isthmus.generation.text_stream import TokenTexts
from isthmus.generation.tiers import Tiers
from isthmus.model.vlm import VisionLanguageModel

_log = logging.getLogger(__name__)


class RunningBatch:
    """The requests that are being computed, and the model's side of them. One thread's own.

    Args:
        model: The model.
        max_batch: Most requests that are decoded together.
        memory: Most bytes kept for later requests.
        prefill_tokens: Most tokens of prompts that are computed between two decoding steps.
        keeps: Whether the states of prompts and answers are kept for those that go on from them;
            otherwise only what prompts say they share.
        observer: Is told of latencies.

    Attributes:
        running: Requests that are decoded, by lane.
        entering: The request whose prompt is being computed.
        shares: Whether rows share a pass; None as long as that was of no matter.
        graphs: Decoding steps as CUDA graphs; None on other devices.
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
        keeps: bool = True,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self.running: list[Job] = []
        self.entering: Job | None = None
        self.graphs = graphs_for(model, max_batch)
        self._llama = decoder_of(model)
        if self._llama is None:
            self.shares: bool | None = takes_lanes(model) if keeps else None
            self.prefiller = Prefiller(model, memory)
        else:
            self.shares = True
            rows = partial(LlamaRows, self._llama, model)
            self.prefiller = Prefiller(model, memory, rows=rows, room=self._llama.prefixes)
        self.decoded = self.steps = 0
        self.ended = {"completed": 0, "cancelled": 0, "expired": 0, "failed": 0}
        self._keeps = keeps
        self._observer = observer
        special = model.special_tokens
        self._ends = frozenset({*model.language.end_ids(), special.end_id})
        self._never = torch.tensor(special.never, dtype=torch.long)
        self._texts = TokenTexts(model.language.tokenizer, special.names, model.language.vocab_rows)
        self._rows = self._new_rows(1)

    def _new_rows(self, count: int) -> Decoding:
        """Somebody to hold so many rows, and those that join them."""
        if self._llama is not None:
            return LlamaDecoding(self._llama, self.model)
        if self.shares is None and count > 1:
            self.shares = takes_lanes(self.model)
        return Tiers(self.model, self.graphs) if self.shares else Apart(self.model)

    @property
    def elsewhere(self) -> bool:
        """Whether another engine than PyTorch reads prompts and decodes."""
        return self._llama is not None

    @property
    def free(self) -> float:
        """Cells of llama.cpp's for prompts and answers that are to come; any number in PyTorch."""
        return math.inf if self._llama is None else self._llama.cells - sum(self._rows.lengths)

    def needs(self, prompt: Encoded, answers: Sequence[int]) -> int:
        """Cells that a prompt takes behind what it shares, with answers of so many tokens."""
        # a sequence each: the prompt's while it is read, and those of its answers
        least = 0 if self._llama is None else self._llama.least * (1 + len(answers))
        return max(least, len(prompt.ids) - prompt.shared + sum(answers))

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
                    job.prefill = self.prefiller.begin(job.prompt, job.images)
                    job.cached = job.prefill.cached
                before = job.prefill.left
                # with nobody to hold up, there is no reason for pieces
                done = self.prefiller.advance(job.prefill, left if self.running else before)
                left -= before - job.prefill.left
                if done is None:
                    continue
                job.prefill, job.images = None, {}
                if self.shares:  # others may write to no states that are copied on joining
                    self.prefiller.keep(job.prompt.symbols, done[0].states)
                self.enter([job], *done)
                self.entering = None  # not before: whoever closes the engine looks for it
            except Exception as error:  # one request's failure is no other's
                self.entering = None
                self._fail(job, _reported(error))

    def enter(
        self, jobs: Sequence[Job], rows: Rows, logits: Tensor, which: Sequence[int] = (0,)
    ) -> None:
        """Takes the first tokens of requests behind prompts, and lets them join the others.

        Args:
            jobs: The requests.
            rows: The prompts, prefilled.
            logits: (B, V) behind them.
            which: The number of each request's prompt.
        """
        places = torch.tensor(which, device=logits.device)
        reasons = self._choose(jobs, logits if len(which) == len(logits) == 1 else logits[places])
        for job, reason in zip(jobs, reasons, strict=True):
            if reason is not None:
                self.end(job, reason)
        there = [place for place, reason in enumerate(reasons) if reason is None]
        if there:
            if not self.running:
                self._rows = self._new_rows(len(there))
            self._rows.join(rows, [which[place] for place in there])
            self.running += [jobs[place] for place in there]

    def step(self) -> None:
        """One more token for each running row."""
        logits = self._logits()
        if logits is None:
            return
        self.steps += 1
        reasons = self._choose(self.running, logits)
        for lane in reversed(range(len(reasons))):
            reason = reasons[lane]
            if reason is not None:
                self._leave(lane, reason)

    def _logits(self) -> Tensor | None:
        """Logits (B, V) of the rows that there is room for; the longest ones fail until there is.

        None if there is no row left.
        """
        while self.running:
            try:
                return self._rows.step([job.ids[-1] for job in self.running])
            except CacheFull as error:
                lengths = self._rows.lengths
                longest = max(range(len(lengths)), key=lengths.__getitem__)
                self._fail(self._take_out(longest), _reported(error))
        return None

    def _choose(self, jobs: Sequence[Job], logits: Tensor) -> list[Reason | None]:
        """Takes a token for each row; why it is the last one, or None."""
        logits = logits.float()
        if len(self._never):
            logits = logits.index_fill(1, self._never.to(logits.device), -math.inf)
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
        known = self._known(jobs, tokens, logits)
        now = time.perf_counter()
        self.decoded += len(tokens)
        return [
            self._take(job, token, known.get(row), now)
            for row, (job, token) in enumerate(zip(jobs, tokens, strict=True))
        ]

    def _known(
        self, jobs: Sequence[Job], tokens: Sequence[int], logits: Tensor
    ) -> dict[int, Tensor]:
        """Log-probabilities (V,) of the rows that are asked for them; sums are taken on the way."""
        asked = [row for row, j in enumerate(jobs) if j.scores or j.request.logprobs is not None]
        if not asked:
            return {}
        some = logits if len(asked) == len(jobs) else logits[asked]
        known = some.log_softmax(dim=-1)
        own = torch.tensor([tokens[row] for row in asked], device=logits.device)
        gained = known.gather(1, own[:, None]).squeeze(1).tolist()
        for row, value in zip(asked, gained, strict=True):
            jobs[row].logprob += value
        return dict(zip(asked, known, strict=True))

    def _take(self, job: Job, token: int, known: Tensor | None, now: float) -> Reason | None:
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
        text, tokens = job.text.push(token, self._scored(job.request.logprobs, token, known))
        if text or tokens:
            job.sink.put(Delta(text, tokens))
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

    def _scored(self, asked: int | None, token: int, known: Tensor | None) -> TokenLogprob | None:
        """A token with its log-probability, if that was asked for."""
        if asked is None or known is None:
            return None
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
        if self._keeps:
            self._keep(self.running[lane], lane)
        self.end(self._take_out(lane), reason)

    def _take_out(self, lane: int) -> Job:
        """Lets a row go; the last one takes its number."""
        self._rows.leave(lane)
        job, last = self.running[lane], self.running.pop()
        if lane < len(self.running):
            self.running[lane] = last
        return job

    def _keep(self, job: Job, lane: int) -> None:
        fed = self._rows.lengths[lane] - len(job.prompt.ids)
        symbols = (*job.prompt.symbols, *job.ids[:fed])
        try:
            states = self._rows.states(lane)
            if states is not None:
                self.prefiller.keep(symbols, states, instead=job.prompt.symbols)
        except Exception as error:  # no room for it, for instance: the request has its answer
            _log.warning("what was computed for a request is not kept", exc_info=error)

    def end(self, job: Job, reason: Reason) -> None:
        """Ends a request, and counts it."""
        if job.failure is not None:
            self._fail(job, job.failure)
            return
        self.ended[counted_as(reason)] += 1
        job.end(reason)

    def _fail(self, job: Job, error: Exception) -> None:
        self.ended["failed"] += 1
        job.sink.put(error)

    def clear(self) -> None:
        """Lets every row go, without a word to anybody: a step did not come to its end."""
        self.running = []
        self._rows = self._new_rows(1)

    def statistics(self) -> Statistics:
        """What is done now, and has been done so far."""
        prefiller, entering = self.prefiller, self.entering
        return Statistics(
            running=len(self.running) + (entering is not None and entering.ended is None),
            **self.ended,
            prefill_tokens=prefiller.computed,
            cached_tokens=prefiller.cached,
            decoded_tokens=self.decoded,
            steps=self.steps,
            images_encoded=prefiller.visual.encoded,
            images_found=prefiller.visual.found,
            prefix_hits=prefiller.hits,
            prefix_misses=prefiller.misses,
            evictions=prefiller.prefixes.evictions,
            bytes=prefiller.prefixes.bytes + prefiller.visual.bytes,
            running_bytes=self._rows.bytes,
            rows_together=self.shares,
        )

    def fail_running(self, error: Exception) -> None:
        """A step failed: its rows cannot go on, the engine can."""
        jobs = self.running
        self.clear()
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
