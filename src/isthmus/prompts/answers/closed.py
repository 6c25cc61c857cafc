"""Which answers a question of a kind may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from isthmus.errors import InputError, suggestion
from isthmus.prompts.answers import AnswerKind

MOST_CHOICES = 26
"""Choices are named by letters."""


def closed_answers(kind: str, choices: Iterable[str] = ()) -> tuple[str, ...]:
    """The answers that a question of a kind may have.

    Args:
        kind: "text", "number", "yes_no", "choice" or "label".
        choices: The answers of a choice or label; empty ones do not count.

    Raises:
        InputError: If the kind is unknown, or choices are missing or there for nothing.

    Example:
        >>> closed_answers("label", ["cat", " dog", ""])
        ('cat', 'dog')
    """
    if kind not in get_args(AnswerKind):
        raise InputError(f'unknown --kind "{kind}": {suggestion(kind, get_args(AnswerKind))}')
    closed = tuple(c.strip() for c in choices if c.strip())
    if (kind in ("choice", "label")) != bool(closed):
        raise InputError(
            f"--kind {kind} came with {len(closed)} choices: --choices goes with the kinds choice "
            'and label, as in --kind label --choices "cat,dog"'
        )
    if kind == "choice" and len(closed) > MOST_CHOICES:
        raise InputError(
            f"got {len(closed)} choices, expected 1 to {MOST_CHOICES}: they are named by letters"
        )
    return closed
