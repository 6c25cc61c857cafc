"""A question broken into smaller ones, as a model lists them (Zhou et al. 2022)."""

from __future__ import annotations

import re

MOST_PARTS = 8
BREAK_DOWN = {"en": "Let's break down this problem:", "ko": "이 문제를 나누어 보자:"}
"""What makes a model list smaller questions; English after Zhou et al. 2022, appendix, where
demonstrations begin so."""
_PART = re.compile(r"(?:^|\s)(\d+)[.)]\s+(.+?)(?=\s\d+[.)]\s|\n|$)", re.DOTALL)


def parts_of(text: str) -> list[str]:
    """Smaller questions of a numbered list, on one line or on several.

    A list ends where its numbers do not go on.

    Example:
        >>> parts_of("1. How many has Anna? 2. How many have they together?")
        ['How many has Anna?', 'How many have they together?']
    """
    parts: list[str] = []
    for number, part in _PART.findall(text):
        if int(number) != len(parts) + 1 or len(parts) == MOST_PARTS:
            break
        parts.append(" ".join(part.split()))
    return parts
