"""What runs programs on an engine: many at once, one text as it is written, or within asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from isthmus.errors import InputError, IsthmusError, QueueFull
from isthmus.generation.requests import Delta, Finished, GenerationRequest, TokenLogprob
from isthmus.prompt import Example, Prompt
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.method import Reasoning, check_shots
from isthmus.reasoning.programs import Call, Program, Written
from isthmus.reasoning.question import Asked
from isthmus.reasoning.vote import program_for, together

if TYPE_CHECKING:
    from isthmus.generation.engine import Engine
    from isthmus.generation.server import ServingEngine
    from isthmus.generation.ticket import Ticket

_PATIENCE_S = 0.02


def run(engine: Engine, programs: Sequence[Program]) -> list[Answer]:
    """Runs programs side by side: what all of them ask for at a time is one batch.

    Args:
        engine: Generates.
        programs: The programs, none of them begun.

    Returns:
        Their answers, in their order.

    Raises:
        PromptError: If a prompt cannot be made or is too long.
    """
    whole = together(programs)
    written: Sequence[Written] | None = None
    while True:
        try:
            calls = next(whole) if written is None else whole.send(written)
        except StopIteration as end:
            answers: list[Answer] = end.value
            return answers
        written = engine.run([call.request for call in calls])


def solve(
    engine: Engine,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    reasoning: Reasoning,
    asked: Asked | Sequence[Asked],
) -> list[Answer]:
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
        >>> from isthmus.templates import qa
        >>> engine = im.Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> how = Reasoning("zero-cot", max_rationale_tokens=2, max_new_tokens=2)
        >>> [answer] = solve(engine, [Example((), "2 + 3?")], [[]], how, Asked(qa, "number"))
        >>> answer.prompts[0]
        "Q: 2 + 3?\nA: Let's think step by step."
    """
    for demonstrations in shots:
        check_shots(reasoning, demonstrations)
    forms = [asked] * len(queries) if isinstance(asked, Asked) else list(asked)
    markers = tuple(engine.model.language.tokenizer.all_special_tokens)
    questions = [
        form.question(query, own, markers=markers)
        for form, query, own in zip(forms, queries, shots, strict=True)
    ]
    return run(engine, [program_for(question, reasoning) for question in questions])


def streamed(engine: Engine, program: Program) -> Iterator[str]:
    """The text of a program's answer as it is written.

    Joined, the pieces are the answer's text. What comes before the answer, the steps, is run
    silently; an answer that has to be found in what is written comes in one piece.

    Raises:
        PromptError: If a prompt cannot be made or is too long.
    """
    written: Sequence[Written] | None = None
    told = ""
    while True:
        try:
            calls = next(program) if written is None else program.send(written)
        except StopIteration as end:
            answer: Answer = end.value
            if not told and answer.text:
                yield answer.text
            return
        if len(calls) > 1 or calls[0].part == "rationale" or not calls[0].live:
            written = engine.run([call.request for call in calls])
            continue
        shown = _Shown(calls[0])
        for event in engine.stream(calls[0].request):
            if isinstance(event, Finished):
                written = [_received(shown.text, event)]
            elif piece := shown.push(event.text):
                told += piece
                yield piece


# --- within asyncio -----------------------------------------------------------------------------


class Interrupted(IsthmusError):
    """An answer broke off before there was anything of it.

    Attributes:
        reason: "deadline" if the time was up, "cancelled" if the engine was closed.
    """

    def __init__(self, reason: Literal["deadline", "cancelled"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


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
        self._told = False
        self._calls: list[Call] = []
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
        calls = await asyncio.to_thread(_advance, self._program, None)
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
        told = {"answer": "", "rationale": ""}
        tokens: tuple[TokenLogprob, ...] = ()
        calls, several = self._calls, False
        while True:
            if len(calls) > 1:
                several = True
                written = list(await asyncio.gather(*map(self._silently, calls)))
            else:
                [call] = calls
                shown, tokens, written = _Shown(call), (), []
                body = call.before.rstrip()
                gap = call.before[len(body) :]  # told once something follows it
                if call.live and body:
                    piece = body if told[call.part] else body.lstrip()
                    told[call.part] += piece
                    yield Piece(piece, call.part)
                async with aclosing(self._written(call)) as events:
                    async for event in events:
                        if not isinstance(event, Delta):
                            written = [event]
                            continue
                        piece = shown.push(event.text)
                        if not call.live:
                            tokens += event.tokens
                        elif piece or event.tokens:
                            if piece:
                                piece, gap = gap + piece, ""
                            told[call.part] += piece
                            yield Piece(piece, call.part, event.tokens)
            self.first = self.first or written[0]
            step = await asyncio.to_thread(_advance, self._program, written)
            if isinstance(step, Answer):
                break
            calls = step
        if step.rationale and step.rationale.startswith(told["rationale"]):
            if rest := step.rationale[len(told["rationale"]) :]:
                yield Piece(rest, "rationale")
        if several:
            tokens = ()  # of whose text it is only a part
        if not told["answer"] and (step.text or tokens):
            yield Piece(step.text, "answer", tokens)
        yield step

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
                yield _NOTHING
                return
        text = ""
        async for event in ticket:
            if isinstance(event, Delta):
                self._told = True
                text += event.text
                yield event
                continue
            self._finished(event)
            if event.reason == "cancelled" and not self._left:
                raise Interrupted("cancelled", "the engine is closing")
            if event.reason == "deadline" and not self._told:
                raise Interrupted("deadline", f"no answer within {self._timeout_s:.0f} s")
            yield _received(text, event)

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


def _advance(program: Program, written: Sequence[Written] | None) -> list[Call] | Answer:
    """A program's next calls, or its answer."""
    try:
        return next(program) if written is None else program.send(written)
    except StopIteration as end:
        answer: Answer = end.value
        return answer


@dataclass(frozen=True)
class _Received:
    """What a ticket's events come to."""

    text: str
    new_tokens: int
    reason: str
    prompt_tokens: int
    cached_tokens: int


_NOTHING = _Received("", 0, "length", 0, 0)


def _received(text: str, end: Finished) -> _Received:
    usage = end.usage
    return _Received(
        text, usage.completion_tokens, end.reason, usage.prompt_tokens, usage.cached_tokens
    )


class _Shown:
    """The text of a call, and as much of it as may be shown while more of it comes.

    White space at its ends is no part of an answer or of steps, and steps end before a marker.
    """

    def __init__(self, call: Call) -> None:
        self.text = ""
        self._until = call.until
        self._told = 0

    def push(self, text: str) -> str:
        """What may be shown now that more has been written."""
        self.text += text
        shown = self.text[: _before_any(self.text, self._until)].strip()
        piece = shown[self._told :]
        self._told = max(self._told, len(shown))
        return piece


def _before_any(text: str, markers: Sequence[str]) -> int:
    """How far a text may be told before a marker that is there, or may be on its way."""
    places = [text.find(m) for m in markers if m in text]
    if places:
        return min(places)
    longest = max(map(len, markers), default=1)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(m.startswith(text[-length:]) for m in markers):
            return len(text) - length
    return len(text)
