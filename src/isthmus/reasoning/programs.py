r"""Ways to reason as programs: what is asked of a model, in which order, and what comes of it.

A program is a generator. It yields calls that may be computed together, is sent their completions
in the same order, and returns an `Answer`. It holds no engine, so that the same program runs in a
script, in an evaluation and in a server.

    >>> from isthmus.prompts.prompt import Example
    >>> from isthmus.reasoning.question import Asked
    >>> from isthmus.prompts.templates import qa
    >>> question = Asked(qa, "number").question(Example((), "2 + 3?"))
    >>> [call] = next(zero_shot(question, Reasoning("zero-cot")))
    >>> call.request.prompt.text
    "Q: 2 + 3?\nA: Let's think step by step."
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from isthmus.generation.requests import GenerationRequest
from isthmus.prompts.prompt import Prompt
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.decompose import BREAK_DOWN, parts_of
from isthmus.reasoning.method import Reasoning, Way
from isthmus.reasoning.question import STOPS, Question
from isthmus.reasoning.wording import KOREAN

STEP_STOPS = ("Question:", "\nQ:")
"""What ends a chain, which may have several lines."""


class Written(Protocol):
    """What a program is sent for a call: a `Completion` of the engine."""

    @property
    def text(self) -> str:
        """The text, without the stop string."""

    @property
    def new_tokens(self) -> int:
        """How many tokens were written."""

    @property
    def reason(self) -> str:
        """How it ended: "stop", "length", "deadline" or "cancelled"."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def cached_tokens(self) -> int:
        """How many of these were not computed anew."""


@dataclass(frozen=True)
class Call:
    """A request of a program, and what its text is of the answer.

    Attributes:
        request: What is asked of the engine.
        part: Whether its text belongs to the answer or to the steps.
        live: Whether its text may be shown while it is written.
        before: What stands before the text among the steps and nobody writes.
        until: Where one of these begins, the part ends.
    """

    request: GenerationRequest
    part: Literal["answer", "rationale"]
    live: bool = False
    before: str = ""
    until: tuple[str, ...] = ()


Program = Generator[list[Call], Sequence[Written], Answer]
_Asking = Generator[list[Call], Sequence[Written], str]


def advance(program: Program, written: Sequence[Written] | None = None) -> list[Call] | Answer:
    """A program's next calls, or its answer.

    Args:
        program: The program.
        written: The completions of its last calls; None to begin it.

    Raises:
        PromptError: If a prompt cannot be made.
    """
    try:
        return next(program) if written is None else program.send(written)
    except StopIteration as end:
        answer: Answer = end.value
        return answer


class _NoRoom(Exception):
    """A chain has used up its tokens or its time."""


class _Chain:
    """One chain on its way: its prompts and its tokens so far."""

    def __init__(self, question: Question, how: Reasoning, number: int) -> None:
        self.question = question
        self.how = how
        self.number = number
        self.prompts: list[Prompt] = []
        self.prompt_tokens = self.cached_tokens = self.new_tokens = self.rationale_tokens = 0
        self.ended = "stop"

    def write(
        self,
        prompt: Prompt,
        most: int,
        stop: Sequence[str],
        part: Literal["answer", "rationale"],
        *,
        drawn: bool = False,
        live: bool = False,
        before: str = "",
        until: tuple[str, ...] = (),
    ) -> _Asking:
        """Asks for one text, as far as there is room for it.

        Raises:
            _NoRoom: If there is none.
        """
        if self.how.max_chain_tokens is not None:
            most = min(most, self.how.max_chain_tokens - self.new_tokens)
        if most < 1 or self.ended in ("deadline", "cancelled"):
            raise _NoRoom
        chain = self.number if drawn else None
        request = self.how.request(prompt, most, stop, chain=chain)
        self.prompts.append(prompt)
        [written] = yield [Call(request, part, live, before, until)]
        self.prompt_tokens += written.prompt_tokens
        self.cached_tokens += written.cached_tokens
        self.new_tokens += written.new_tokens
        if part == "rationale":
            self.rationale_tokens += written.new_tokens
        self.ended = written.reason
        return written.text

    def answer(
        self,
        written: str,
        after: tuple[str, ...],
        *,
        rationale: str = "",
        as_written: bool = False,
    ) -> Answer:
        """The answer that its last text states."""
        parsed = self.question.found(written, after)
        return Answer(
            text=written if parsed is None or as_written else parsed,
            written=written,
            prompts=tuple(p.text for p in self.prompts),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=self.new_tokens,
            finish_reason="stop" if self.ended == "stop" else "length",
            parsed=parsed,
            unparsed=float(parsed is None),
            rationale=rationale.strip() or None,
            rationale_tokens=self.rationale_tokens,
        )

    def unfinished(self, rationale: str) -> Answer:
        """What there is of it, where no room was left for an answer."""
        self.ended = "length"
        return self.answer("", ("",), rationale=rationale)


def at_once(question: Question, how: Reasoning, number: int = 0) -> Program:
    """One prompt, whose continuation is the answer."""
    chain = _Chain(question, how, number)
    prompt = question.prompt()
    if how.max_new_tokens < 1:  # nothing is asked for, which is no error
        chain.prompts.append(prompt)
        return chain.unfinished("")
    text = yield from chain.write(
        prompt, how.max_new_tokens, question.stop, "answer", drawn=True, live=True
    )
    return chain.answer(text.strip(), ("",), as_written=True)


def few_shot(question: Question, how: Reasoning, number: int = 0) -> Program:
    """Steps and answer in one text, in the manner of the demonstrations (Wei et al. 2022).

    Where all demonstrations begin their steps with the trigger, as Auto-CoT's do (Zhang et al.
    2022), so does the answer.
    """
    chain = _Chain(question, how, number)
    trigger = how.trigger_of(question.text)
    worked = [s.rationale for s in question.shots if s.rationale]
    alike = bool(worked) and all(r.startswith(trigger.text) for r in worked)
    prompt = question.prompt(trigger.text if alike else "", conclusion=trigger.wording.conclusion)
    markers = trigger.wording.markers
    most = how.max_rationale_tokens
    text = question.cleaned(
        (
            yield from chain.write(
                prompt, most, STEP_STOPS, "rationale", drawn=True, live=True, until=markers
            )
        )
    )
    return chain.answer(text, markers, rationale=_before(text, markers))


def zero_shot(question: Question, how: Reasoning, number: int = 0) -> Program:
    """The trigger and steps, then a second prompt that asks for the answer (Kojima et al. 2022)."""
    chain = _Chain(question, how, number)
    trigger = how.trigger_of(question.text)
    first = question.prompt(trigger.text)
    most = how.max_rationale_tokens
    steps = question.cleaned(
        (yield from chain.write(first, most, STEP_STOPS, "rationale", drawn=True, live=True))
    )
    lead = trigger.answer_lead(
        f" {steps}" if steps else "", question.kind, choices=len(question.choices)
    )
    asking = question.prompt(lead)
    # Chains of one question go on from the same states: its first prompt's. A chain that is alone
    # stands in a batch with those of other questions instead.
    if how.samples > 1:
        asking = replace(asking, shared=len(first.text))
    try:
        text = yield from chain.write(asking, how.max_new_tokens, STOPS, "answer")
    except _NoRoom:
        return chain.unfinished(steps)
    return chain.answer(question.cleaned(text), ("",), rationale=steps)


def least_to_most(question: Question, how: Reasoning, number: int = 0) -> Program:
    """A list of smaller questions, their answers in order, then the answer (Zhou et al. 2022)."""
    chain = _Chain(question, how, number)
    trigger = how.trigger_of(question.text)
    start = BREAK_DOWN["ko" if trigger.wording is KOREAN else "en"]
    most = how.max_rationale_tokens
    stop = (*STEP_STOPS, "\n\n")
    text = yield from chain.write(question.prompt(start), most, stop, "rationale", drawn=True)
    parts = parts_of(question.cleaned(text))
    steps = "".join(f" {i}. {part}" for i, part in enumerate(parts, 1))
    shown = ""
    try:
        for i in range(1, len(parts) + 1):
            steps += f"\n{i}."
            text = yield from chain.write(
                question.prompt(start + steps),
                most,
                ("\n", *STEP_STOPS),
                "rationale",
                live=True,
                before=f"{steps.removeprefix(shown)} ",
            )
            part = question.cleaned(text)
            shown = f"{steps} {part}" if part else steps
            steps += f" {part}"
        lead = start + steps + trigger.extraction(question.kind, choices=len(question.choices))
        text = yield from chain.write(question.prompt(lead), how.max_new_tokens, STOPS, "answer")
    except _NoRoom:
        return chain.unfinished(steps)
    return chain.answer(question.cleaned(text), ("",), rationale=steps)


WAYS: dict[Way, Callable[[Question, Reasoning, int], Program]] = {
    "none": at_once,
    "cot": few_shot,
    "zero-cot": zero_shot,
    "least-to-most": least_to_most,
}
"""The program of each way; its last argument is the chain's number."""


def _before(text: str, markers: Sequence[str]) -> str:
    """A text up to the first of some markers."""
    places = [text.find(m) for m in markers if m in text]
    return text[: min(places)] if places else text
