"""From an engine's tickets to one choice of an answer: at once, or in steps.

A choice is a stream of `Said` (text, or the steps to it) and then one `Ended`. Steps are as the
library has them: after a trigger, with a second prompt that asks for the answer (Kojima et al.
2022), or in the manner of demonstrations (Wei et al. 2022).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from isthmus.answers import AnswerKind, extract
from isthmus.errors import PromptError, QueueFull
from isthmus.generation.server import (
    Delta,
    Finished,
    GenerationRequest,
    ServingEngine,
    Ticket,
    TokenLogprob,
)
from isthmus.prompt import Prompt, without_tags
from isthmus.prompting.chains import STEP_STOPS, STOPS
from isthmus.serving.refusals import Refusal
from isthmus.triggers import Trigger

_PATIENCE_S = 0.02


@dataclass(frozen=True)
class Said:
    """A piece of a choice.

    Attributes:
        text: The text.
        tokens: The tokens that ended in it, where log-probabilities were asked for.
        thought: Whether it is one of the steps and not of the answer.
    """

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    thought: bool = False


@dataclass(frozen=True)
class Ended:
    """How a choice ended.

    Attributes:
        reason: "stop" or "length".
        prompt_tokens, cached_tokens: Of its first prompt.
        completion_tokens: Tokens of answer and steps.
        thought_tokens: Of the steps alone.
        prompts: The exact prompts.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thought_tokens: int = 0
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """How a choice reaches its answer in steps.

    Attributes:
        way: "cot" or "zero-cot".
        trigger: What makes the model reason, and how the answer is asked for.
        kind: What the answer is.
        choices: The closed answers.
        budget: Most tokens of both.
        max_step_tokens: Most tokens of the steps.
        max_new_tokens: Most tokens of the answer.
        prompt: From the beginning of the answer to a prompt.
        markers: Strings that no step may bring into a prompt.
    """

    way: str
    trigger: Trigger
    kind: AnswerKind
    choices: tuple[str, ...]
    budget: int
    max_step_tokens: int
    max_new_tokens: int
    prompt: Callable[[str], Prompt]
    markers: tuple[str, ...] = ()


Events = AsyncGenerator[Said | Ended, None]


class Choice:
    """One answer on its way.

    Args:
        engine: Generates.
        request: What to generate, or, with steps, how.
        steps: How to reach the answer in steps; None for at once.
        bare: Whether white space at the beginning belongs to the prompt's form.
        finished: Called with each ticket's end.
    """

    def __init__(
        self,
        engine: ServingEngine,
        request: GenerationRequest,
        steps: Steps | None,
        bare: bool,
        finished: Callable[[Finished], None],
    ) -> None:
        self.engine = engine
        self.request = request
        self.steps = steps
        self.bare = bare
        self.finished = finished
        self.began = time.monotonic()
        self.left = False
        self._ticket: Ticket | None = None

    async def start(self) -> None:
        """Gets in line.

        Raises:
            QueueFull: If the line is full.
            PromptError: If the prompt is too long.
        """
        await asyncio.to_thread(self._submit, self.request)

    def _submit(self, request: GenerationRequest) -> None:
        """In a thread, which goes on though nobody waits for it any more."""
        ticket = self._ticket = self.engine.submit(request)
        if self.left:
            ticket.cancel()

    def cancel(self) -> None:
        """The client has left."""
        self.left = True
        if self._ticket is not None:
            self._ticket.cancel()

    async def events(self) -> Events:
        """Its pieces, and its end.

        Raises:
            Refusal: 503 if it ran out of time before there was anything, or the server closes.
        """
        if self.steps is None:
            source = self._plain()
        else:
            source = self._cot() if self.steps.way == "cot" else self._zero_cot()
        try:
            async for event in source:
                yield event
        finally:
            await source.aclose()

    # --- Ways -------------------------------------------------------------------------------

    async def _plain(self) -> Events:
        fresh = self.bare
        end = None
        async for event in self._of_ticket():
            if isinstance(event, Finished):
                end = event
                continue
            text = event.text.lstrip() if fresh else event.text
            fresh = fresh and not text
            if text or event.tokens:
                yield Said(text, event.tokens)
        assert end is not None
        yield self._ended(end)

    async def _zero_cot(self) -> Events:
        """The trigger and the steps, then a second prompt that asks for the answer."""
        steps = self.steps
        assert steps is not None
        written, thought = "", None
        async for event in self._of_ticket():
            if isinstance(event, Finished):
                thought = event
                continue
            piece = event.text if written.strip() else event.text.lstrip()
            written += event.text
            if piece:
                yield Said(piece, thought=True)
        assert thought is not None
        used = thought.usage.completion_tokens
        first = self._ended(thought, thought=used)
        room = steps.budget - used
        if room <= 0 or thought.reason == "deadline":
            yield replace(first, reason="length")
            return
        said = without_tags(written, steps.markers).strip()
        lead = steps.trigger.answer_lead(
            f" {said}" if said else "", steps.kind, options=len(steps.choices)
        )
        prompt = steps.prompt(lead)
        try:
            await self._go_on(
                replace(
                    self.request,
                    prompt=prompt,
                    max_new_tokens=min(room, steps.max_new_tokens),
                    stop=(*STOPS, *self._own_stops()),
                    temperature=0.0,
                    deadline_s=self._time_left(),
                )
            )
        except PromptError:  # the steps have filled the context: there is no room to ask in
            yield replace(first, reason="length")
            return
        answer, end = "", None
        tokens: tuple[TokenLogprob, ...] = ()
        async for event in self._of_ticket():
            if isinstance(event, Finished):
                end = event
                continue
            answer += event.text
            tokens += event.tokens
        assert end is not None
        answer = without_tags(answer, steps.markers).strip()
        found = extract(answer, steps.kind, steps.choices, after=("",))
        yield Said(answer if found is None else found, tokens)
        yield replace(
            first,
            reason="stop" if end.reason == "stop" else "length",
            completion_tokens=used + end.usage.completion_tokens,
            prompts=(*first.prompts, prompt.text),
        )

    async def _cot(self) -> Events:
        """Steps and answer in one text; the answer stands behind "The answer is"."""
        steps = self.steps
        assert steps is not None
        markers = steps.trigger.wording.markers
        written, sent, end, fresh = "", 0, None, True
        async for event in self._of_ticket():
            if isinstance(event, Finished):
                end = event
                continue
            written += event.text
            safe = _before_any(written, markers)
            piece = written[sent:safe].lstrip() if fresh else written[sent:safe]
            sent = max(sent, safe)
            if piece:
                fresh = False
                yield Said(piece, thought=True)
        assert end is not None
        places = [written.find(m) for m in markers if m in written]
        stated = min(places, default=len(written))
        if stated > sent:
            yield Said(written[sent:stated], thought=True)
        answer = extract(written.strip(), steps.kind, steps.choices, after=markers)
        yield Said(written.strip() if answer is None else answer)
        yield self._ended(end, thought=end.usage.completion_tokens)

    # --- Tickets ----------------------------------------------------------------------------

    async def _of_ticket(self) -> AsyncIterator[Delta | Finished]:
        """The ticket's events; being out of time with nothing said is an error."""
        assert self._ticket is not None
        said = False
        async for event in self._ticket:
            if isinstance(event, Finished):
                self.finished(event)
                if event.reason == "cancelled" and not self.left:
                    raise Refusal(503, "the server is shutting down", "shutting_down")
                if event.reason == "deadline" and not said:
                    raise Refusal(
                        503,
                        f"no answer within {self.request.deadline_s:.0f} s: the server is busy, "
                        "come back later",
                        "timeout",
                    )
            said = True
            yield event

    def _ended(self, end: Finished, thought: int = 0) -> Ended:
        usage = end.usage
        return Ended(
            "stop" if end.reason == "stop" else "length",
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            thought,
            (self.request.prompt.text,),
        )

    def _own_stops(self) -> tuple[str, ...]:
        return tuple(s for s in self.request.stop if s not in STEP_STOPS)

    def _time_left(self) -> float | None:
        if self.request.deadline_s is None:
            return None
        return max(0.1, self.request.deadline_s - (time.monotonic() - self.began))

    async def _go_on(self, request: GenerationRequest) -> None:
        """Gets in line once more; half an answer is not dropped because the line is full."""
        while True:
            try:
                await asyncio.to_thread(self._submit, request)
                return
            except QueueFull:
                if self.left or (self._time_left() or 1) <= 0.1:
                    raise
                await asyncio.sleep(_PATIENCE_S)


def _before_any(text: str, markers: Sequence[str]) -> int:
    """How far a text may be told before a marker that is there, or may be on its way."""
    places = [text.find(m) for m in markers if m in text]
    if places:
        return min(places)
    for length in range(min(max(map(len, markers)) - 1, len(text)), 0, -1):
        if any(m.startswith(text[-length:]) for m in markers):
            return len(text) - length
    return len(text)
