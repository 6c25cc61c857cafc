"""From a prompt to a row that can be decoded, with nothing computed that is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from isthmus.generation.pictures import VisualTokens
from isthmus.generation.prefix import PrefixStore, boundary, bytes_of, can_be_cut, fork
from isthmus.generation.rows import Encoded, Rows, seen_after
from isthmus.model import VisionLanguageModel


@dataclass(eq=False)
class Prefill:
    """A prompt on its way through the language model, maybe in several pieces.

    Attributes:
        prompt: The prompt.
        pictures: Its pictures by their hashes.
        states: What the language model keeps of the first tokens.
        past: How many these are.
        cached: How many of them were known.
        visual: Visual tokens of pictures that were needed so far, by their hashes.
    """

    prompt: Encoded
    pictures: dict[str, Any]
    states: Any = None
    past: int = 0
    cached: int = 0
    visual: dict[str, Tensor] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.prompt.ids) - self.past


class Prefiller:
    """Prefills prompts one after the other, from the longest known beginning on.

    Args:
        model: The model.
        memory: Most bytes that prefixes and visual tokens may keep, half of it each.

    Attributes:
        hits, misses: Prompts whose beginning was known, and was not.
        computed, cached: Tokens of prompts that were computed, and that were not.
    """

    def __init__(self, model: VisionLanguageModel, memory: int) -> None:
        self.model = model
        self.prefixes = PrefixStore(memory // 2)
        self.visual = VisualTokens(model, memory // 2)
        self.hits = self.misses = self.computed = self.cached = 0

    def begin(self, prompt: Encoded, pictures: dict[str, Any]) -> Prefill:
        """Finds what is known of a prompt."""
        job = Prefill(prompt, pictures)
        near = self.prefixes.nearest(prompt.symbols)
        if near is not None:
            prefix, shared = near
            last = min(shared, len(prompt.ids) - 1)
            past = boundary(prompt.symbols, last, prompt.layouts)
            if past and (past == len(prefix.symbols) or can_be_cut(prefix.states)):
                job.states, job.past = fork(prefix.states, past), past
        self.hits += job.past > 0
        self.misses += job.past == 0
        job.cached = job.past
        self.cached += job.past
        return job

    def advance(self, job: Prefill, most: int) -> tuple[Rows, Tensor] | None:
        """Computes about so many tokens; the row and its logits (1, V) once all are."""
        prompt = job.prompt
        last = min(job.past + most, len(prompt.ids))
        end = boundary(prompt.symbols, last, prompt.layouts, down=False)
        part = prompt.first(end) if end < len(prompt.ids) else prompt
        needed = {*seen_after(self.model, part, job.past)} - job.visual.keys()
        job.visual |= self.visual.of([(h, job.pictures[h]) for h in part.pictures if h in needed])
        rows = Rows(self.model, [part], job.visual, job.states, job.past)
        logits = rows.prefill()
        self.computed += end - job.past
        job.states, job.past = rows.states, end
        return (rows, logits) if end == len(prompt.ids) else None

    def keep(self, symbols: tuple[int | str, ...], states: Any, instead: Any = ()) -> None:
        """Keeps states that nobody will write to, in place of those of their beginning."""
        if symbols in self.prefixes or bytes_of(states) > self.prefixes.memory:
            return
        self.prefixes.drop(tuple(instead))
        self.prefixes.put(symbols, states)
