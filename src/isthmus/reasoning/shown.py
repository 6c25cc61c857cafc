"""What of a text may be shown while more of it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.generation.requests import Finished
from isthmus.reasoning.programs import Call


@dataclass(frozen=True)
class Received:
    """What a request's events come to; a `Written` of a program."""

    text: str
    new_tokens: int
    reason: str
    prompt_tokens: int
    cached_tokens: int


NOTHING = Received("", 0, "length", 0, 0)
"""Where there is no room in the context to ask."""


def received(text: str, end: Finished) -> Received:
    """A request's text and how it ended, as a program is sent them."""
    usage = end.usage
    return Received(
        text, usage.completion_tokens, end.reason, usage.prompt_tokens, usage.cached_tokens
    )


class Shown:
    """The text of a call, and as much of it as may be shown while more of it comes.

    White space at its ends is no part of an answer or of steps, and steps end before a marker.

    Args:
        call: The call.

    Attributes:
        text: All of the text so far.
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
