"""The serving engine: requests join and leave a running batch between decoding steps.

One thread owns the model. Between two steps it lets go of rows that are done, cancelled or late,
and prefills waiting prompts up to a number of tokens, so that a long prompt holds up the running
rows by no more than a piece of it (chunked prefill: Agrawal et al. 2024, Sarathi-Serve, section 4).
Batching by step is Orca's (Yu et al. 2022, section 4.1).
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import replace
from threading import Condition, Thread
from types import TracebackType

import torch
from PIL import Image

from isthmus.errors import EngineClosed, QueueFull
from isthmus.generation.batch import RunningBatch
from isthmus.generation.constraints import Constraints
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.job import Job, Observer, counted_as
from isthmus.generation.packed import PackedLinears
from isthmus.generation.requests import (
    Delta,
    Finished,
    GenerationRequest,
    Reason,
    TokenLogprob,
    Usage,
)
from isthmus.generation.results import Statistics
from isthmus.generation.text_stream import TextStream
from isthmus.generation.ticket import Ticket
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.prompts.prompt import Prompt

__all__ = [
    "Delta",
    "Finished",
    "GenerationRequest",
    "Observer",
    "ServingEngine",
    "Statistics",
    "Ticket",
    "TokenLogprob",
    "Usage",
]


class ServingEngine:
    """Generates for many at once.

    Greedy text is the same alone and among others, and so is text drawn under a seed.

    Args:
        model: The model, put into evaluation mode; nobody else may use it while the engine lives.
        max_batch: Most requests that are decoded together.
        max_queue: Most requests that wait.
        memory: Most bytes kept for later requests, half for prefixes and half for visual tokens;
            the least recently used go first. The running requests' own states come on top.
        prefill_tokens: Most tokens of prompts that are computed between two decoding steps.
        packed: Most bytes of weights that are kept a second time, laid out for the CPU's matrix
            products (`packed.PackedLinears`); 0 keeps none. Nothing where the model is elsewhere.
        observer: Is told of latencies.

    Attributes:
        context_length: Most tokens of a prompt and its continuation.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> with ServingEngine(model) as engine:
        ...     ticket = engine.submit(GenerationRequest(prompt=Prompt("Hi"), max_new_tokens=2))
        ...     text, tokens, finished = ticket.result()
        >>> finished.usage.prompt_tokens
        2
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        max_batch: int = 16,
        max_queue: int = 64,
        memory: int = 1 << 30,
        prefill_tokens: int = 256,
        packed: int = 2 << 30,
        observer: Observer | None = None,
    ) -> None:
        refuse_whole(model, "continuous batching")
        self.model = model.eval()
        self.max_batch, self.max_queue = max_batch, max_queue
        self._encode = PromptEncoder(self.model)
        self.context_length = self._encode.context_length
        self._observer = observer
        self._packed = PackedLinears(model, packed)
        self._constraints = Constraints(model.language.tokenizer)
        self._batch = RunningBatch(
            self.model,
            max_batch=max_batch,
            memory=memory,
            prefill_tokens=prefill_tokens,
            observer=observer,
        )
        self._queue: deque[Job] = deque()
        self._ended: Counter[str] = Counter()  # requests that never ran
        self._changed = Condition()
        self._closing = False
        self.prompt_tokens(Prompt("a"))  # a tokenizer changes its own settings the first time
        self._warm_up()
        self._thread = Thread(target=self._work, name="isthmus-serving", daemon=True)
        self._thread.start()

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Reads a text and an image, so that no request waits until the encoder is traced.

        Nor until the language model's layers are packed, with adapters and without.
        """
        with suppress(Exception):  # a model that takes something else
            self.model(self.model.prepare(["a"]), last=1)
            if not self.model.text_only:
                blank = Image.new("RGB", (8, 8))
                self.model(self.model.prepare(["<image>a"], [[blank]]), last=1)
        if self._batch.graphs is not None and self._batch.shares:
            self._batch.graphs.warm_up()

    # --- the askers' side -----------------------------------------------------------------------

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt, visual tokens in the text included.

        Raises:
            PromptError: If tags and images do not match, or the model sees none.
        """
        return len(self._encode.tokens(prompt))

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queues a request; what is wrong with it is said here.

        From any thread. Images are read and hashed before it returns: an asyncio loop should let
        a thread do it.

        Raises:
            PromptError: If the prompt is empty, too long, or does not fit its images.
            InputError: If a schema cannot be followed.
            ImageError: If an image cannot be read.
            QueueFull: If as many requests wait as may.
            EngineClosed: If the engine has been closed.
        """
        submitted = time.perf_counter()
        self._check_open()
        prompt, images = self._encode(request.prompt)
        room = self.context_length - len(prompt.ids)
        ticket = Ticket(self._left)
        schema = request.json_schema
        seed = random.SystemRandom().getrandbits(64) if request.seed is None else request.seed
        job = Job(
            request=request,
            sink=ticket,
            prompt=prompt,
            images=images,
            most=min(request.max_new_tokens, room),
            text=TextStream(self.model.special_tokens.decode, request.stop),
            chance=random.Random(seed),
            submitted=submitted,
            constraint=None if schema is None else self._constraints.of(schema),
        )
        if job.most == 0:  # there is nothing to compute
            self._end(job, "length")
            return ticket
        with self._changed:
            self._check_open()
            self._queue.append(job)
            self._changed.notify()
        self._tell_queue()
        return ticket

    def _check_open(self) -> None:
        if self._closing:
            raise EngineClosed("the engine has been closed and takes no more requests")
        if len(self._queue) >= self.max_queue:
            raise QueueFull(
                f"{len(self._queue)} requests are waiting, which is the limit: try again later"
            )

    def _left(self, ticket: Ticket) -> None:
        """Somebody cancelled: if their request still waits, it is gone at once."""
        with self._changed:
            job = next((j for j in self._queue if j.sink is ticket), None)
            if job is None:
                return  # the engine's thread will see
            self._queue.remove(job)
        self._end(job, "cancelled")
        self._tell_queue()

    def _end(self, job: Job, reason: Reason) -> None:
        """Ends a request that never ran; from any thread."""
        with self._changed:
            self._ended[counted_as(reason)] += 1
        job.end(reason)

    @property
    def is_alive(self) -> bool:
        """Whether its thread works; false after `close`, and if it ever died of an error."""
        return self._thread.is_alive()

    def statistics(self) -> Statistics:
        """What the engine does now, and has done so far."""
        found = self._batch.statistics()
        with self._changed:
            never_ran = dict(self._ended)
        more = {name: getattr(found, name) + count for name, count in never_ran.items()}
        return replace(found, queued=len(self._queue), **more)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Takes no more requests and ends.

        Args:
            drain: Whether requests that wait or run are finished; else they are cancelled.
            timeout: Seconds after which they are cancelled all the same; None waits.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if drain:
            self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                there = [*self._queue, self._batch.entering, *self._batch.running]
            for job in there:
                if job is not None:
                    job.sink.cancel()
            self._thread.join(timeout)

    def __enter__(self) -> ServingEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    # --- the engine's thread --------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                self._serve()
        finally:
            with self._changed:
                self._closing = True
                left = [*self._queue, self._batch.entering, *self._batch.running]
                self._queue.clear()
            for job in left:  # only if what handles failures has failed
                if job is not None:
                    job.sink.put(EngineClosed("the engine has stopped"))
            self._packed.restore()

    def _serve(self) -> None:
        """Until the engine is closed and nothing is left to do."""
        batch = self._batch
        while True:
            with self._changed:
                while not (self._queue or batch.entering or batch.running):
                    if self._closing:
                        return
                    self._changed.wait()
            try:
                self._expire()
                batch.sweep()
                batch.admit(self._following)
                batch.sweep()  # prompts may have taken long
                if batch.running:
                    batch.step()
            except Exception as error:  # the engine outlives what it serves
                batch.fail_running(error)

    def _expire(self) -> None:
        """Ends what waits no longer, since it is late."""
        now = time.perf_counter()
        with self._changed:
            late = [(j, r) for j in self._queue if (r := j.ended_early(now)) is not None]
            for job, _ in late:
                self._queue.remove(job)
        for job, reason in late:
            self._end(job, reason)
        if late:
            self._tell_queue()

    def _following(self) -> Job | None:
        """The next request that waits, which waits no more."""
        with self._changed:
            if not self._queue:
                return None
            job = self._batch.entering = self._queue.popleft()
        self._tell_queue()
        return job

    def _tell_queue(self) -> None:
        if self._observer is not None:
            with suppress(Exception):
                self._observer.queued(len(self._queue))
