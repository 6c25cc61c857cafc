"""From a prompt to a row that can be decoded, with nothing computed that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor

from isthmus.generation.images import VisualTokens
from isthmus.generation.prefix import (
    Prefix,
    PrefixStore,
    Room,
    Symbols,
    boundary,
    bytes_of,
    can_be_cut,
    fork,
)
from isthmus.generation.rows import Encoded, Rows, seen_after
from isthmus.model.vlm import VisionLanguageModel


@dataclass(eq=False)
class Prefill:
    """A prompt on its way through the language model, maybe in several pieces.

    Attributes:
        prompt: The prompt.
        images: Its images by their hashes.
        states: What the language model keeps of the first tokens.
        past: How many these are.
        cached: How many of them were known.
        visual: Visual tokens of images that were needed so far, by their hashes.
    """

    prompt: Encoded
    images: dict[str, Any]
    states: Any = None
    past: int = 0
    cached: int = 0
    visual: dict[str, Tensor] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.prompt.ids) - self.past


class Prefiller:
    """Prefills prompts, one piece by piece or several together, from known beginnings on.

    Args:
        model: The model.
        memory: Most bytes that prefixes and visual tokens may keep, half of it each.
        rows: Makes rows that continue a prefix, with the arguments of `Rows` behind the model.
        room: What the prefixes share with those of other prefillers; None for nothing.

    Attributes:
        shares: Whether beginnings of prompts are shared, and prompts computed piece by piece; not
            where a prompt's tokens see what stands behind them.
        hits, misses: Prompts whose beginning was known, and was not.
        computed, cached: Tokens of prompts that were computed, and that were not.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        memory: int,
        *,
        rows: Callable[..., Any] | None = None,
        room: Room | None = None,
    ) -> None:
        self.model = model
        self._rows: Callable[..., Any] = partial(Rows, model) if rows is None else rows
        self.shares = model.language.reading.shares
        self.prefixes = PrefixStore(memory // 2, room)
        self.visual = VisualTokens(model, memory // 2)
        self.hits = self.misses = self.computed = self.cached = 0

    def begin(self, prompt: Encoded, images: dict[str, Any]) -> Prefill:
        """Finds what is known of a prompt."""
        job = self._begin(prompt, images)
        self._known([prompt], job.past)
        return job

    def _begin(self, prompt: Encoded, images: dict[str, Any]) -> Prefill:
        job = Prefill(prompt, images)
        near = self.prefixes.nearest(prompt.symbols) if self.shares else None
        if near is not None:
            prefix, shared = near
            last = min(shared, len(prompt.ids) - 1)
            past = boundary(prompt.symbols, last, prompt.layouts)
            if past and (past == len(prefix.symbols) or can_be_cut(prefix.states)):
                job.states, job.past = fork(prefix.states, past), past
        job.cached = job.past
        return job

    def _known(self, prompts: Sequence[Encoded], past: int) -> None:
        """Counts prompts that so many tokens were known of."""
        self.hits += len(prompts) * (past > 0)
        self.misses += len(prompts) * (past == 0)
        self.cached += len(prompts) * past

    def advance(self, job: Prefill, most: int) -> tuple[Rows, Tensor] | None:
        """Computes about so many tokens; the row and its logits (1, V) once all are."""
        prompt = job.prompt
        last = min(job.past + most, len(prompt.ids)) if self.shares else len(prompt.ids)
        end = boundary(prompt.symbols, last, prompt.layouts, down=False)
        part = prompt.first(end) if end < len(prompt.ids) else prompt
        needed = {*seen_after(self.model, part, job.past)} - job.visual.keys()
        job.visual |= self.visual.of([(h, job.images[h]) for h in part.images if h in needed])
        rows = self._rows([part], job.visual, job.states, job.past)
        logits = rows.prefill()
        self.computed += end - job.past
        job.states, job.past = rows.states, end
        return (rows, logits) if end == len(prompt.ids) else None

    def keep(self, symbols: tuple[int | str, ...], states: Any, instead: Any = ()) -> None:
        """Keeps states that nobody will write to, in place of those of their beginning."""
        if not self.shares or symbols in self.prefixes or bytes_of(states) > self.prefixes.memory:
            return
        self.prefixes.drop(tuple(instead))
        self.prefixes.put(symbols, states)

    # --- several prompts together -----------------------------------------------------------------

    def together(
        self,
        prompts: Sequence[tuple[Encoded, dict[str, Any]]],
        most: int,
        needs: Sequence[int] | None = None,
        free: float = math.inf,
    ) -> Iterator[tuple[list[int], Rows, int]]:
        """Batches of prompts behind what they share, which is computed once and kept.

        Where room is bounded, the caller lets the rows of a batch go before it asks for the next.

        Args:
            prompts: Prompts, and their images by their hashes.
            most: Most rows of a batch.
            needs: Tokens for which each prompt takes room, behind what it shares; None for 0.
            free: Tokens that there is room for. A prompt that needs more stands alone.

        Yields:
            Numbers of a batch's prompts, their rows, not prefilled, and how many tokens of them
            were known.
        """
        groups: dict[Symbols, list[int]] = {}
        for number, (prompt, _) in enumerate(prompts):
            shared = prompt.shared if self.shares else 0
            groups.setdefault(prompt.symbols[:shared], []).append(number)
        needs = [0] * len(prompts) if needs is None else needs
        for symbols, members in groups.items():
            yield from self._group(prompts, members, most, needs, free - len(symbols))

    def _group(
        self,
        prompts: Sequence[tuple[Encoded, dict[str, Any]]],
        members: Sequence[int],
        most: int,
        needs: Sequence[int],
        free: float,
    ) -> Iterator[tuple[list[int], Rows, int]]:
        """Batches of prompts that share the same symbols, as `together`."""
        prefix = self._shared(*prompts[members[0]])  # held here: the store may have no room for it
        padded = prefix is None or (
            can_be_cut(prefix.states) and self.model.language.takes_positions
        )
        past = 0 if prefix is None else len(prefix.symbols)
        ordered = sorted(members, key=lambda n: len(prompts[n][0].ids))  # less padding
        runs = [ordered]
        # Padding stands between a prefix and what is a row's own. A sliding window would count it,
        # and so would a model that is not told positions.
        if not padded:
            runs = [list(g) for _, g in groupby(ordered, key=lambda n: len(prompts[n][0].ids))]
        for numbers in (batch for run in runs for batch in _batches(run, most, needs, free)):
            yield numbers, self._batch([prompts[n] for n in numbers], prefix), past

    def _batch(
        self, chosen: Sequence[tuple[Encoded, dict[str, Any]]], prefix: Prefix | None
    ) -> Rows:
        """The rows of some prompts behind a prefix, not prefilled."""
        past = 0 if prefix is None else len(prefix.symbols)
        states = None if prefix is None else fork(prefix.states, past, len(chosen))
        wanted = {h: d[h] for p, d in chosen for h in seen_after(self.model, p, past)}
        visual = self.visual.of(list(wanted.items()))
        rows: Rows = self._rows([p for p, _ in chosen], visual, states, past)
        self._known([p for p, _ in chosen], past)
        self.computed += sum(len(p.ids) - past for p, _ in chosen)
        return rows

    def _shared(self, prompt: Encoded, images: dict[str, Any]) -> Prefix | None:
        """The states of what a prompt shares, computed if they are not there."""
        if not (prompt.shared and self.shares):
            return None
        part = prompt.first(prompt.shared)
        found = self.prefixes.get(part.symbols)
        if found is None:
            job = self._begin(part, images)
            self.advance(job, job.left)
            found = Prefix(part.symbols, job.states, bytes_of(job.states))
            self.keep(part.symbols, job.states)
        return found


def _batches(
    members: Sequence[int], most: int, needs: Sequence[int], free: float
) -> Iterator[list[int]]:
    """Numbers in batches, in their order: so many at most, and with room for all of a batch."""
    batch: list[int] = []
    for number in members:
        if batch and (len(batch) == most or sum(needs[n] for n in [*batch, number]) > free):
            yield batch
            batch = []
        batch.append(number)
    yield batch
