"""Each group beside the rest and beside every other.

Letters: G groups, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from isthmus.auditing.measures.classes import Interval
from isthmus.auditing.measures.permutation import (
    Counts,
    Table,
    expected,
    holm,
    p_value,
    permuted,
    share_labels,
)
from isthmus.evaluation.metrics import wilson

MOST_PAIRED = 8
"""With more groups than this, groups are compared with the rest, but not in pairs."""


@dataclass(frozen=True)
class Group:
    """One group beside all other compared images.

    Attributes:
        name: Its value.
        n: Its images.
        right: How many of them were recognised.
        accuracy: right / n.
        interval: Wilson's interval of it.
        expected: Accuracy it would have if each label's accuracy were the same in all groups.
        difference: Accuracy less that of all others.
        p: Two-sided permutation p of the difference.
        p_holm: The same, corrected for the number of groups (Holm 1979).
        p_within_labels: Permutation p of accuracy less expected, groups permuted within labels;
            None where no label of it has images of another group.
    """

    name: str
    n: int
    right: int
    accuracy: float
    interval: Interval
    expected: float
    difference: float
    p: float
    p_holm: float
    p_within_labels: float | None


@dataclass(frozen=True)
class Pair:
    """Two groups; the p-values as in `Group`, from the images of both alone.

    Attributes:
        first: The one.
        second: The other.
        difference: Accuracy of the first less that of the second.
        p: Two-sided permutation p.
        p_holm: The same, corrected for the number of pairs.
        p_within_labels: The same, permuted within labels; None where they share no label.
    """

    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    p_within_labels: float | None


def each_group(
    names: Sequence[str], table: Table, free: Counts, within: Counts | None
) -> tuple[Group, ...]:
    """Compares each group with the rest.

    Given all right answers, a group's difference from the rest grows with its own right answers,
    so that these are what is tested.

    Args:
        names: Names of the groups (G,).
        table: Counts by group and label.
        free: Right answers (P, G) when groups are permuted over all images.
        within: The same when groups are permuted within labels; None where nothing can be.

    Example:
        >>> table = Table(np.array([[20], [20]]), np.array([[19], [4]]))
        >>> free = permuted(table, 500, np.random.default_rng(0))
        >>> [(g.name, g.difference, g.p < 0.01) for g in each_group("ab", table, free, None)]
        [('a', 0.75, True), ('b', -0.75, True)]
    """
    sizes, right = table.images.sum(axis=1), table.right.sum(axis=1)
    alike, by_labels, shared = expected(table.merged()), expected(table), share_labels(table)
    ps = [
        p_value(np.abs(free[:, g] - alike[g]), abs(right[g] - alike[g])) for g in range(len(names))
    ]
    corrected = holm(ps)
    found = []
    for g, name in enumerate(names):
        n, hits, middle = int(sizes[g]), int(right[g]), float(by_labels[g])
        strict = None
        if within is not None and shared[g]:
            strict = p_value(np.abs(within[:, g] - middle), abs(hits - middle))
        found.append(
            Group(
                name=name,
                n=n,
                right=hits,
                accuracy=hits / n,
                interval=wilson(hits, n),
                expected=middle / n,
                difference=hits / n - float((right.sum() - hits) / (sizes.sum() - n)),
                p=ps[g],
                p_holm=corrected[g],
                p_within_labels=strict,
            )
        )
    return tuple(found)


def each_pair(
    names: Sequence[str], table: Table, permutations: int, rng: np.random.Generator
) -> tuple[Pair, ...]:
    """Compares every two groups, permuted among the images of both.

    Args:
        names: Names of the groups (G,).
        table: Counts by group and label.
        permutations: P.
        rng: Draws the permutations.

    Returns:
        Every pair; none with more than `MOST_PAIRED` groups.

    Example:
        >>> table = Table(np.array([[20], [20]]), np.array([[19], [4]]))
        >>> pair = each_pair("ab", table, 500, np.random.default_rng(0))[0]
        >>> pair.difference, pair.p < 0.01
        (0.75, True)
    """
    if len(names) > MOST_PAIRED:
        return ()

    def tested(both: Table) -> float:
        drawn, middle = permuted(both, permutations, rng)[:, 0], expected(both)[0]
        return p_value(np.abs(drawn - middle), abs(both.right[0].sum() - middle))

    tables = {pair: table.of(pair) for pair in combinations(range(len(names)), 2)}
    ps = [tested(both.merged()) for both in tables.values()]
    found = []
    for ((a, b), both), p, p_holm in zip(tables.items(), ps, holm(ps), strict=True):
        first, second = both.right.sum(axis=1) / both.images.sum(axis=1)
        found.append(
            Pair(
                first=names[a],
                second=names[b],
                difference=float(first - second),
                p=p,
                p_holm=p_holm,
                p_within_labels=tested(both) if share_labels(both).any() else None,
            )
        )
    return tuple(found)
