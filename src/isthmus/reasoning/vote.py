"""Self-consistency: several chains, one vote each (Wang et al. 2022, section 2).

Only answers that parse have a vote. Where unparsed ones are counted as an answer of their own, "no
answer" can win the vote, and the share of chains that say nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.prompts.answers import AnswerKind, same_answer


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
