"""What runs programs on an `Engine`: many side by side, or one whose text is shown as it grows.

`live` runs them within asyncio, on a server's engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from isthmus.errors import PromptError
from isthmus.generation.requests import Finished
from isthmus.prompts.prompt import Example
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.method import Reasoning, check_shots
from isthmus.reasoning.programs import Call, Program, Written, advance
from isthmus.reasoning.question import Asked
from isthmus.reasoning.shown import NOTHING, Shown, received
from isthmus.reasoning.vote import program_for, together

if TYPE_CHECKING:
    from isthmus.generation.engine import Engine


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
        written = _completed(engine, calls, begun=written is not None)


def _completed(engine: Engine, calls: Sequence[Call], *, begun: bool) -> Sequence[Written]:
    """What is written for each call; nothing for one whose steps have filled the context.

    Args:
        engine: Generates.
        calls: The calls.
        begun: Whether something was written before them.
    """
    try:
        return engine.run([call.request for call in calls])
    except PromptError:
        if not begun:
            raise
        if len(calls) == 1:
            return [NOTHING]
        return [one for call in calls for one in _completed(engine, [call], begun=True)]


def streamed(engine: Engine, program: Program) -> Iterator[str]:
    """The text of a program's answer as it is written.

    Joined, the pieces are the answer's text. What comes before the answer, the steps, is run
    silently; an answer that has to be found in what is written comes in one piece.

    Raises:
        PromptError: If a prompt cannot be made or is too long.
    """
    told, begun = False, False
    step = advance(program)
    while not isinstance(step, Answer):
        written: list[Written] = []
        for event in _pieces(engine, step, begun):
            if isinstance(event, str):
                told = True
                yield event
            else:
                written.append(event)
        step, begun = advance(program, written), True
    if step.text and not told:
        yield step.text


def _pieces(engine: Engine, calls: Sequence[Call], begun: bool) -> Iterator[str | Written]:
    """The pieces of an answer that may be shown, and what is written for each call."""
    if len(calls) > 1 or calls[0].part == "rationale" or not calls[0].live:
        yield from _completed(engine, calls, begun=begun)
        return
    shown = Shown(calls[0])
    for event in engine.stream(calls[0].request):
        if isinstance(event, Finished):
            yield received(shown.text, event)
        elif piece := shown.push(event.text):
            yield piece


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
        >>> from isthmus.prompts.templates import qa
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
