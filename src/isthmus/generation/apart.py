"""Rows of language models whose rows cannot share a pass unless they were prefilled together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.generation.prefix import bytes_of
from isthmus.generation.rows import Rows
from isthmus.model.vlm import VisionLanguageModel


class Apart:
    """Rows that are decoded in a pass for each batch that was prefilled: `decoding.Decoding`.

    For language models whose states slide or recur, or whose positions are read off a mask. Rows of
    one batch stay together, padded as they were; rows that come later never join them.

    Args:
        model: The model.

    Attributes:
        lengths: Tokens of each row.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self.lengths: list[int] = []
        self._places: list[tuple[Rows, int]] = []  # batch of each row, and its place there

    @property
    def _batches(self) -> list[Rows]:
        """The batches, in the order of their first rows."""
        return list(dict.fromkeys(rows for rows, _ in list(self._places)))

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(bytes_of(rows.states) for rows in self._batches)

    def join(self, rows: Rows, which: Sequence[int]) -> None:
        """Takes rows of a batch that has been prefilled."""
        if list(which) != list(range(len(rows.lengths))):
            rows.select(torch.tensor(which, device=self.model.device))
        self.lengths += rows.lengths.tolist()
        self._places += [(rows, place) for place in range(len(which))]

    def leave(self, row: int) -> None:
        """Lets a row go; the last one takes its number."""
        rows, gone = self._places[row]
        count = sum(other is rows for other, _ in self._places)
        if count > 1:
            left = [place for place in range(count) if place != gone]
            rows.select(torch.tensor(left, device=self.model.device))
        self._places = [
            (own, place - 1) if own is rows and place > gone else (own, place)
            for own, place in self._places
        ]
        self._places[row], self.lengths[row] = self._places[-1], self.lengths[-1]
        self._places.pop()
        self.lengths.pop()

    def states(self, row: int) -> Any:
        """A row's states, if it was prefilled alone; the row is not to be continued."""
        rows, _ = self._places[row]
        return rows.states if len(rows.lengths) == 1 else None

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row."""
        device = self.model.device
        found: list[Tensor] = []
        order: list[int] = []
        for rows in self._batches:
            own = [row for row, (other, _) in enumerate(self._places) if other is rows]
            own.sort(key=lambda row: self._places[row][1])
            found.append(rows.step(torch.tensor([ids[row] for row in own], device=device)))
            order += own
        self.lengths = [n + 1 for n in self.lengths]
        widest = max(t.shape[1] for t in found)
        padded = [F.pad(t, (0, widest - t.shape[1]), value=-torch.inf) for t in found]
        if order == list(range(len(order))):
            return torch.cat(padded)
        return torch.cat(padded)[torch.tensor(order, device=device).argsort()]
