"""Self-consistency: several chains, one vote each (Wang et al. 2022, section 2).

Only answers that parse have a vote. Where unparsed ones are counted as an answer of their own, "no
answer" can win the vote, and the share of chains that say nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from isthmus.prompts.answers import AnswerKind, same_answer
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.method import Reasoning
from isthmus.reasoning.programs import WAYS, Call, Program, Written, advance
from isthmus.reasoning.question import Question


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        answer: The winner as it was first given; None if nothing parsed.
        chosen: Number of the chain that gave it first; 0 if nothing parsed.
        votes: Votes by answer, most first.
        agreement: The winner's share of the votes, a confidence in (0, 1]; None without votes.
        unparsed: Share of chains without a vote.
    """

    answer: str | None
    chosen: int
    votes: dict[str, int]
    agreement: float | None
    unparsed: float


def program_for(question: Question, how: Reasoning) -> Program:
    """The program that answers a question: one chain, or several that vote.

    Example:
        >>> from isthmus.prompts.prompt import Example
        >>> from isthmus.reasoning.question import Asked
        >>> from isthmus.prompts.templates import qa
        >>> question = Asked(qa, "number").question(Example((), "2 + 3?"))
        >>> calls = next(program_for(question, Reasoning("zero-cot", samples=3)))
        >>> [call.request.seed for call in calls]
        [0, 1000003, 2000006]
    """
    chain = WAYS[how.way]
    if how.samples == 1:
        return chain(question, how, 0)
    return _voted(question, [chain(question, how, number) for number in range(how.samples)])


def together(
    programs: Sequence[Program],
) -> Generator[list[Call], Sequence[Written], list[Answer]]:
    """Programs side by side, as one: what they ask for at the same time is asked for at once.

    Args:
        programs: The programs, none of them begun.

    Returns:
        Their answers, in their order.
    """
    answers: dict[int, Answer] = {}
    waiting: dict[int, list[Call]] = {}

    def go_on(number: int, written: Sequence[Written] | None) -> None:
        waiting.pop(number, None)
        step = advance(programs[number], written)
        if isinstance(step, Answer):
            answers[number] = step
        else:
            waiting[number] = step

    for number in range(len(programs)):
        go_on(number, None)
    while waiting:
        written = yield [call for calls in waiting.values() for call in calls]
        start = 0
        for number, calls in list(waiting.items()):
            go_on(number, written[start : start + len(calls)])
            start += len(calls)
    return [answers[number] for number in range(len(programs))]


def _voted(question: Question, chains: Sequence[Program]) -> Program:
    """Self-consistency: the answer that most chains reach, and the steps of the first of them."""
    chorus = together(chains)
    calls = next(chorus)
    first: Written | None = None
    while True:
        # which chain wins is not known before the end, so that nothing can be shown
        written = yield [replace(call, live=False) for call in calls]
        first = first or written[0]
        try:
            calls = chorus.send(written)
        except StopIteration as end:
            answers: list[Answer] = end.value
            break
    result = vote([a.parsed for a in answers], question.kind)
    chosen = answers[result.chosen]
    again = len(answers) - 1  # the first prompt is the same for all, and is computed once
    return replace(
        chosen,
        text=chosen.written if result.answer is None else result.answer,
        parsed=result.answer,
        votes=result.votes,
        agreement=result.agreement,
        unparsed=result.unparsed,
        prompt_tokens=sum(a.prompt_tokens for a in answers) - again * first.prompt_tokens,
        cached_tokens=sum(a.cached_tokens for a in answers) - again * first.cached_tokens,
        new_tokens=sum(a.new_tokens for a in answers),
        rationale_tokens=sum(a.rationale_tokens for a in answers),
    )


def vote(found: Sequence[str | None], kind: AnswerKind) -> Vote:
    """The most frequent answer; of equals, the one that was given first.

    Args:
        found: Each chain's parsed answer, None where there is none.
        kind: What makes two answers the same: "3" and "3.0" are the same number.

    Example:
        >>> vote(["4", None, "3.0", None, "3"], "number").answer
        '3.0'
    """
    firsts: list[int] = []
    counts: list[int] = []
    for number, answer in enumerate(found):
        if answer is None:
            continue
        for place, first in enumerate(firsts):
            if same_answer(answer, str(found[first]), kind):
                counts[place] += 1
                break
        else:
            firsts.append(number)
            counts.append(1)
    unparsed = sum(a is None for a in found) / max(1, len(found))
    if not firsts:
        return Vote(None, 0, {}, None, unparsed)
    order = sorted(range(len(firsts)), key=lambda place: -counts[place])  # stable: first of equals
    votes = {str(found[firsts[place]]): counts[place] for place in order}
    best = order[0]
    return Vote(str(found[firsts[best]]), firsts[best], votes, counts[best] / sum(counts), unparsed)
