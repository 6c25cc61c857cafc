"""What runs a program within asyncio, on a server's engine, its text told as it is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from isthmus.errors import InputError, Interrupted, QueueFull
from isthmus.generation.requests import Delta, Finished, GenerationRequest, TokenLogprob
from isthmus.prompts.prompt import Prompt
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.programs import Call, Program, Written, advance
from isthmus.reasoning.shown import NOTHING, Shown, received

if TYPE_CHECKING:
    from isthmus.generation.server import ServingEngine
    from isthmus.generation.ticket import Ticket

_PATIENCE_S = 0.02


@dataclass(frozen=True)
class Piece:
    """A piece of an answer on its way.

    Attributes:
        text: The text.
        part: Whether it is of the answer or of the steps to it.
        tokens: The tokens that ended in it, where log-probabilities were asked for.
    """

    text: str
    part: Literal["answer", "rationale"] = "answer"
    tokens: tuple[TokenLogprob, ...] = ()


class AnswerStream:
    """One program on its way through a `ServingEngine`, its text told as it is written.

    Args:
        engine: Generates.
        program: The program, not begun.
        adapt: Changes each request before it is queued: log-probabilities, penalties, ...
        timeout_s: Seconds for all of it, waiting included; None for no end.
        finished: Called with each request's end.

    Attributes:
        first: The first request's completion, once there is one.
    """

    def __init__(
        self,
        engine: ServingEngine,
        program: Program,
        *,
        adapt: Callable[[GenerationRequest], GenerationRequest] = lambda request: request,
        timeout_s: float | None = None,
        finished: Callable[[Finished], None] = lambda end: None,
    ) -> None:
        self.engine = engine
        self.first: Written | None = None
        self._program = program
        self._adapt = adapt
        self._timeout_s = timeout_s
        self._finished = finished
        self._began = time.monotonic()
        self._left = False
        self._told = {"answer": "", "rationale": ""}
        self._begun = False  # whether anything has been generated
        self._tokens: tuple[TokenLogprob, ...] = ()  # of a text that is not shown as it comes
        self._calls: list[Call] = []
        self._chains = 1
        self._head: Ticket | None = None
        self._tickets: list[Ticket] = []

    @property
    def prompt(self) -> Prompt | None:
        """The first prompt, once it is made."""
        return self._calls[0].request.prompt if self._calls else None

    async def start(self) -> None:
        """Makes the first prompt and gets in line.

        Raises:
            QueueFull: If the line is full.
            PromptError: If the prompt cannot be made or is too long.
        """
        calls = await asyncio.to_thread(advance, self._program)
        assert not isinstance(calls, Answer)
        self._calls = calls
        self._head = await asyncio.to_thread(self._submit, calls[0].request)

    def cancel(self) -> None:
        """Whoever asked has left."""
        self._left = True
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncGenerator[Piece | Answer, None]:
        """The answer's pieces and then all of it; to be read once, after `start`.

        Raises:
            Interrupted: If it ran out of time before there was anything, or the engine closes.
        """
        step: list[Call] | Answer = self._calls
        while not isinstance(step, Answer):
            written: list[Written] = []
            async with aclosing(self._pieces(step)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        yield event
                    else:
                        written.append(event)
            self.first = self.first or written[0]
            step = await asyncio.to_thread(advance, self._program, written)
        for piece in self._rest(step):
            yield piece
        yield step

    async def _pieces(self, calls: Sequence[Call]) -> AsyncGenerator[Piece | Written, None]:
        """The pieces that may be shown, and what is written for each call."""
        self._tokens = ()
        self._chains = max(self._chains, len(calls))
        if len(calls) > 1:
            for written in await asyncio.gather(*map(self._silently, calls)):
                yield written
            return
        [call] = calls
        shown = Shown(call)
        body = call.before.rstrip()
        gap = call.before[len(body) :]  # told once something follows it
        if call.live and body:
            yield self._tell(body if self._told[call.part] else body.lstrip(), call.part)
        async with aclosing(self._written(call)) as events:
            async for event in events:
                if not isinstance(event, Delta):
                    yield event
                    continue
                piece = shown.push(event.text)
                if not call.live:
                    self._tokens += event.tokens if self._chains == 1 else ()  # else one of many
                elif piece or event.tokens:
                    if piece:
                        piece, gap = gap + piece, ""
                    yield self._tell(piece, call.part, event.tokens)

    def _tell(
        self, text: str, part: Literal["answer", "rationale"], tokens: tuple[TokenLogprob, ...] = ()
    ) -> Piece:
        self._told[part] += text
        return Piece(text, part, tokens)

    def _rest(self, answer: Answer) -> Iterator[Piece]:
        """What of an answer has not been told while it was written."""
        steps, told = answer.rationale or "", self._told["rationale"]
        if steps.startswith(told) and len(steps) > len(told):
            yield Piece(steps[len(told) :], "rationale")
        if not self._told["answer"] and (answer.text or self._tokens):
            yield Piece(answer.text, "answer", self._tokens)

    async def _silently(self, call: Call) -> Written:
        async for event in self._written(call):
            if not isinstance(event, Delta):
                return event
        raise AssertionError("a request ended without its end")

    async def _written(self, call: Call) -> AsyncGenerator[Delta | Written, None]:
        """What is written for a call, piece by piece and then as a whole."""
        ticket, self._head = self._head, None
        if ticket is None:
            try:
                ticket = await self._patiently(call.request)
            except InputError:  # the steps have filled the context: there is no room to ask in
                yield NOTHING
                return
        text = ""
        async for event in ticket:
            if isinstance(event, Delta):
                self._begun = True
                text += event.text
                yield event
                continue
            self._finished(event)
            if event.reason == "cancelled" and not self._left:
                raise Interrupted("the engine is closing", late=False)
            if event.reason == "deadline" and not self._begun:
                raise Interrupted(f"no answer within {self._timeout_s:.0f} s", late=True)
            yield received(text, event)

    async def _patiently(self, request: GenerationRequest) -> Ticket:
        """Gets in line once more; half an answer is not dropped because the line is full."""
        while True:
            try:
                return await asyncio.to_thread(self._submit, request)
            except QueueFull:
                if self._left or (self._time_left() or 1) <= 0.1:
                    raise
                await asyncio.sleep(_PATIENCE_S)

    def _submit(self, request: GenerationRequest) -> Ticket:
        """In a thread, which goes on though nobody waits for it any more."""
        ticket = self.engine.submit(replace(self._adapt(request), deadline_s=self._time_left()))
        self._tickets.append(ticket)
        if self._left:
            ticket.cancel()
        return ticket

    def _time_left(self) -> float | None:
        if self._timeout_s is None:
            return None
        return max(0.1, self._timeout_s - (time.monotonic() - self._began))
