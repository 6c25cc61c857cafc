"""Rows of like length together: a row of 8,000 tokens must not make short ones as expensive.

A pass attends, and a block has room, as far as its longest row. So rows are put into tiers by
the length that they join with, each tier a block and a pass of its own. Most prompts are in the
lowest, where a pass more would cost more than attending to nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.generation.graph_lanes import GraphLanes
from isthmus.generation.graphs import Graphs
from isthmus.generation.lanes import Lanes
from isthmus.generation.rows import Rows
from isthmus.model.vlm import VisionLanguageModel

SHORT = 1024
"""Tokens of the longest row that joins the lowest tier."""
STEP = 4
"""How much longer those of each further tier may be."""


class Tiers:
    """Rows that are decoded in one pass per tier: `decoding.Decoding`.

    Args:
        model: The model.
        graphs: Recorded steps for the lowest tier; None for none.
    """

    def __init__(self, model: VisionLanguageModel, graphs: Graphs | None = None) -> None:
        self.model, self.graphs = model, graphs
        self._tiers: dict[int, Lanes | GraphLanes] = {}
        self._places: list[tuple[int, int]] = []  # tier and lane of each row

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self._tiers[tier].lengths[lane] for tier, lane in self._places]

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(lanes.bytes for lanes in list(self._tiers.values()))

    def join(self, rows: Rows, which: Sequence[int]) -> None:
        """Takes rows that have been prefilled, which are copied."""
        lengths = rows.lengths.tolist()
        tiers = [_tier(lengths[row]) for row in which]
        for tier in sorted(set(tiers)):
            lanes = self._tiers.get(tier) or self._tiers.setdefault(tier, self._lanes(tier))
            lanes.join(rows, [row for row, own in zip(which, tiers, strict=True) if own == tier])
        lane = {tier: len(self._tiers[tier].lengths) - tiers.count(tier) for tier in tiers}
        for tier in tiers:
            self._places.append((tier, lane[tier]))
            lane[tier] += 1

    def _lanes(self, tier: int) -> Lanes | GraphLanes:
        """Lanes for a tier that has none yet."""
        if self.graphs is not None and tier == SHORT:
            return GraphLanes(self.graphs)
        return Lanes(self.model)

    def leave(self, row: int) -> None:
        """Lets a row go; the last one takes its number."""
        tier, lane = self._places[row]
        lanes = self._tiers[tier]
        last = (tier, len(lanes.lengths) - 1)
        lanes.leave(lane)
        if not lanes.lengths:
            del self._tiers[tier]
        self._places[self._places.index(last)] = (tier, lane)
        self._places[row] = self._places[-1]
        self._places.pop()

    def states(self, row: int) -> Any:
        """A row's states, copied."""
        tier, lane = self._places[row]
        return self._tiers[tier].states(lane)

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row."""
        order = sorted(range(len(ids)), key=self._places.__getitem__)
        found, start = [], 0
        for _, lanes in sorted(self._tiers.items()):
            end = start + len(lanes.lengths)
            found.append(lanes.step([ids[row] for row in order[start:end]]))
            start = end
        if len(found) == 1 and order == list(range(len(ids))):
            return found[0]
        # a tier without images has no columns for our two tokens
        widest = max(t.shape[1] for t in found)
        logits = [F.pad(t, (0, widest - t.shape[1]), value=-torch.inf) for t in found]
        back = torch.tensor(order, device=logits[0].device).argsort()
        return torch.cat(logits)[back]


def _tier(length: int) -> int:
    """The longest length that a row of so many tokens joins with."""
    tier = SHORT
    while tier < length:
        tier *= STEP
    return tier
