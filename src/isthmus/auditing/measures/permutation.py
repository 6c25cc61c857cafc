"""Permutations of groups, drawn as counts, and p-values corrected for their number.

Under the null hypothesis the right answers are spread over groups at random: over all images, or
within each label. Their numbers per group are then (multivariate) hypergeometric, so that draws
from that distribution are permutations, at a cost that does not grow with the images.

Letters: n images, G groups, L labels, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]
ROUNDING = 1e-9
"""Statistics this close count as equal."""


@dataclass(frozen=True)
class Table:
    """Counts by group and label.

    Attributes:
        images: Images (G, L).
        right: How many of them were recognised (G, L).
    """

    images: Counts
    right: Counts

    def merged(self) -> Table:
        """All labels as one, (G, 1): for groups permuted freely."""
        return Table(self.images.sum(axis=1, keepdims=True), self.right.sum(axis=1, keepdims=True))

    def of(self, groups: Sequence[int]) -> Table:
        """Some groups alone."""
        return Table(self.images[list(groups)], self.right[list(groups)])


def count_table(groups: Counts, targets: Counts, right: NDArray[np.bool_]) -> Table:
    """Counts the images of each group and label.

    Args:
        groups: The group's number of each image (n,), 0 to G - 1.
        targets: Its label's number (n,).
        right: Whether it was recognised (n,).

    Example:
        >>> count_table(np.array([0, 0, 1]), np.array([5, 5, 7]), np.array([True, False, True]))
        Table(images=array([[2, 0],
               [0, 1]]), right=array([[1, 0],
               [0, 1]]))
    """
    labels, column = np.unique(targets, return_inverse=True)
    shape = (int(groups.max()) + 1, len(labels))
    cells = groups * len(labels) + column
    images, hits = (np.bincount(c, minlength=shape[0] * shape[1]) for c in (cells, cells[right]))
    return Table(images.reshape(shape), hits.reshape(shape))


def permuted(table: Table, permutations: int, rng: np.random.Generator) -> Counts:
    """Right answers (P, G) of each group when groups are permuted within labels.

    Example:
        >>> table = Table(np.array([[1], [1]]), np.array([[1], [0]]))
        >>> permuted(table, 5, np.random.default_rng(0)).sum(axis=1)
        array([1, 1, 1, 1, 1])
    """
    total = np.zeros((permutations, len(table.images)), dtype=np.int64)
    for images, right in zip(table.images.T, table.right.T, strict=True):
        total += rng.multivariate_hypergeometric(
            images, int(right.sum()), size=permutations, method="marginals"
        )
    return total


def expected(table: Table) -> Shares:
    """The mean of these permutations (G,): a group's images times the accuracy of their labels.

    Example:
        >>> expected(Table(np.array([[2], [2]]), np.array([[2], [1]])))
        array([1.5, 1.5])
    """
    accuracy = table.right.sum(axis=0) / np.maximum(1, table.images.sum(axis=0))
    return np.asarray(table.images @ accuracy)


def share_labels(table: Table) -> NDArray[np.bool_]:
    """Whether each group (G,) has a label that another group has too.

    Example:
        >>> share_labels(Table(np.array([[2, 0], [1, 0], [0, 3]]), np.zeros((3, 2))))
        array([ True,  True, False])
    """
    common = (table.images > 0).sum(axis=0) > 1
    return np.asarray(((table.images > 0) & common).any(axis=1))


def p_value(drawn: Shares, observed: float) -> float:
    """(1 + draws at least as large) / (1 + P), which is never 0 (Phipson and Smyth 2010).

    Example:
        >>> p_value(np.array([0.0, 0.5, 1.0]), 0.5)
        0.75
    """
    return (1 + int((drawn >= observed - ROUNDING).sum())) / (1 + len(drawn))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): p-values that hold for all tests together.

    Args:
        ps: p-values.

    Returns:
        Corrected p-values in the same order, at most 1.

    Example:
        >>> holm([0.25, 0.125])
        [0.25, 0.25]
    """
    order = np.argsort(ps, kind="stable")
    factors = np.arange(len(order), 0, -1)
    raised = np.minimum(1, np.maximum.accumulate(np.asarray(ps)[order] * factors))
    found = np.empty(len(order))
    found[order] = raised
    return [float(p) for p in found]
