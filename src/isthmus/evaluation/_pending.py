"""Stands in for parts that are being written elsewhere; to be removed when they are merged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from isthmus.answers import AnswerKind
from isthmus.prompt import END_TAG, IMAGE_TAG, Example, Prompt


def extract(
    text: str,
    kind: AnswerKind,
    options: Sequence[str] = (),
    *,
    after: tuple[str, ...] | None = None,
) -> str | None:
    """A canonical answer found in a text, or None."""
    for marker in after or ():
        if marker in text:
            text = text.rpartition(marker)[2]
    if kind == "number":
        found = re.search(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        return found[0] if found else None
    if kind == "choice":
        found = re.search(r"\b([A-Z])\b", text)
        return found[1] if found else None
    if kind in ("yes_no", "label"):
        words = ("yes", "no") if kind == "yes_no" else tuple(options)
        at = [(text.lower().find(w.lower()), w) for w in words if w.lower() in text.lower()]
        return min(at)[1] if at else None
    return text.strip() or None


def same_answer(got: str, expected: str, kind: AnswerKind) -> bool:
    """Whether two answers are the same."""
    if kind == "number":
        try:
            return float(got) == float(expected)
        except ValueError:
            return False
    return got.strip().rstrip(".").lower() == expected.strip().rstrip(".").lower()


def render(
    name: str,
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool = False,
) -> Prompt:
    """A prompt as the templates will make it."""

    def told(e: Example, answered: bool) -> str:
        head = IMAGE_TAG * len(e.pictures) + f"Question: {e.question} Answer:"
        if not answered:
            return head + (f" {lead}" if lead else "")
        worked = f"{e.rationale} The answer is {e.answer}." if reason and e.rationale else e.answer
        return f"{head} {worked}{END_TAG}"

    before = instruction + "".join(told(s, True) for s in shots)
    pictures: tuple[Any, ...] = tuple(p for e in (*shots, query) for p in e.pictures)
    return Prompt(before + told(query, False), pictures, len(before))
