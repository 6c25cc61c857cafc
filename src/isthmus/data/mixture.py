"""Which record a sample is: several data sets in fixed shares, each in an order of its own.

Sample n of a run is decided by n and the seed alone, so a run that was stopped, or that is spread
over another number of processes, goes on with the same samples. No state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread as evenly as any sequence can be (Knuth, The Art of
Computer Programming, volume 3, section 6.4)."""


@dataclass(frozen=True)
class SampleRef:
    """One sample of a run.

    Attributes:
        number: The sample's number in the run.
        data: Number of the data set.
        index: Number of the record in it.
        epoch: How often the data set has been gone through before.
    """

    number: int
    data: int
    index: int
    epoch: int


class Mixture:
    """The order of a run's samples.

    Each data set is gone through in a random order, anew in every epoch, so each record is seen
    once before any is seen twice. Shares are kept at all times and not only on average: after n
    samples a data set has had its share of n within a few.

    Args:
        sizes: Records of each data set.
        weights: Share of each, in any unit.
        batch_size: Samples of a step.
        seed: Seed of the orders.
        accumulate: Each step takes `batch_size * weight` samples of every data set, at least one,
            instead of `batch_size` samples of all together.

    Attributes:
        batch_size: Samples of a step.
        blocks: How many of them stand together: those of each data set, or all.

    Example:
        >>> mixture = Mixture([10, 2], [3.0, 1.0], batch_size=4, seed=0)
        >>> sorted(draw.data for draw in mixture.step(0))
        [0, 0, 0, 1]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        accumulate: bool = False,
    ) -> None:
        self.sizes = list(sizes)
        self.seed = seed
        shares = np.asarray(weights, dtype=np.float64)
        self._bounds = np.cumsum(shares / shares.sum())
        self._bounds[-1] = 1.0
        self._each = [max(1, round(batch_size * w)) if w > 0 else 0 for w in weights]
        self._accumulate = accumulate
        self.batch_size = sum(self._each) if accumulate else batch_size
        self.blocks = self._each if accumulate else [batch_size]
        self._offset = float(np.random.default_rng([seed, 0]).random())
        self._counted = (0, [0] * len(self.sizes))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def step(self, step: int) -> list[SampleRef]:
        """The samples of a step, counted from 0."""
        first = step * self.batch_size
        if self._accumulate:
            data = [m for m, n in enumerate(self._each) for _ in range(n)]
            before = [step * n for n in self._each]
        else:
            data = self._data_of(first, first + self.batch_size).tolist()
            before = self._count(first)
        seen = list(before)
        draws = []
        for j, m in enumerate(data):
            epoch, place = divmod(seen[m], self.sizes[m])
            seen[m] += 1
            draws.append(SampleRef(first + j, m, int(self._order(m, epoch)[place]), epoch))
        if not self._accumulate:
            self._counted = (first + self.batch_size, seen)
        return draws

    def _data_of(self, start: int, stop: int) -> np.ndarray:
        """The data sets of samples start to stop."""
        spread = (self._offset + np.arange(start, stop) * GOLDEN) % 1.0
        return np.searchsorted(self._bounds, spread, side="right").clip(max=len(self.sizes) - 1)

    def _count(self, samples: int) -> list[int]:
        """How many samples each data set has had among the first so many."""
        known, counts = self._counted
        if known != samples:
            counts = [0] * len(self.sizes)
            for start in range(0, samples, 1 << 20):
                chunk = self._data_of(start, min(samples, start + (1 << 20)))
                found = np.bincount(chunk, minlength=len(counts))
                counts = [c + int(f) for c, f in zip(counts, found, strict=True)]
        return list(counts)

    def _order(self, data: int, epoch: int) -> np.ndarray:
        """A data set's order in an epoch."""
        known = self._orders.get(data)
        if known is None or known[0] != epoch:
            generator = np.random.default_rng([self.seed, 1, data, epoch])
            known = self._orders[data] = (epoch, generator.permutation(self.sizes[data]))
        return known[1]
