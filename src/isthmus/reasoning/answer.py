"""The one type of an answer, whoever asked: `ask`, an evaluation or a client of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Answer:
    """An answer and how it was reached.

    Attributes:
        text: The answer: as the model wrote it where it was asked at once; where steps or a vote
            led to it, what was found in what the model wrote, if anything was.
        written: The answer as the model wrote it, always.
        prompts: Every exact prompt in its order, `<image>` where an image stands; with several
            chains, those of the chain that won.
        prompt_tokens: Tokens of all prompts, visual tokens included; the first prompt, which all
            chains share, counts once.
        cached_tokens: How many of these were not computed anew.
        new_tokens: Tokens of the answer and of the steps to it, over all chains.
        finish_reason: "stop" if the model ended by itself or at a stop string, else "length".
        parsed: What was found in the text, in one spelling; None if it does not parse.
        unparsed: Share of chains without an answer that parses; they have no vote.
        rationale: The steps to the answer, apart from it; None if there are none.
        rationale_tokens: How many of the new tokens are steps.
        votes: Votes by answer, most first, where there were several chains.
        agreement: The winner's share of the votes, a confidence; None for a single chain.
    """

    text: str
    written: str
    prompts: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    finish_reason: Literal["stop", "length"]
    parsed: str | None
    unparsed: float
    rationale: str | None = None
    rationale_tokens: int = 0
    votes: dict[str, int] = field(default_factory=dict)
    agreement: float | None = None

    @property
    def prompt(self) -> str:
        """The last prompt, which the answer continues."""
        return self.prompts[-1]
