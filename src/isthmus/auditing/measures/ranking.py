"""Whether a search shows groups in their shares, beside what a random order would.

Letters: k results looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError

ROUNDING = 1e-12
"""Divergences that are this close count as equal."""


def skews(
    ranked_groups: Sequence[str], k: int, shares: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """The skew of each group among the first k (Geyik et al. 2019, arXiv 1905.01989).

    It is ln(share among the first k / desired share): 0 where a group has its share, ln 2 where
    it has twice that.

    Args:
        ranked_groups: The group of each result, best first.
        k: How many results are looked at.
        shares: Group to its desired share, above 0, in all 1; None for those of the whole ranking.

    Returns:
        Group to skew; None, for minus infinity, where it has nothing among the first k.

    Raises:
        InputError: If k is out of range or the shares are none.

    Example:
        >>> skews(["a", "a", "b", "b"], 2)
        {'a': 0.6931471805599453, 'b': None}
    """
    wanted = _shares(ranked_groups, shares)
    if not 1 <= k <= len(ranked_groups):
        raise InputError(f"k is {k}: expected 1 to {len(ranked_groups)}, the number of results")
    counts = Counter(ranked_groups[:k])
    return {g: log(counts[g] / k / share) if counts[g] else None for g, share in wanted.items()}


def max_skew(
    ranked_groups: Sequence[str], k: int, shares: Mapping[str, float] | None = None
) -> float:
    """MaxSkew@k: the skew of the most over-represented group (Geyik et al. 2019).

    It is at least 0, and 0 only where all groups have their shares.

    Args:
        ranked_groups: The group of each result, best first.
        k: How many results are looked at.
        shares: Group to its desired share; None for those of the whole ranking.

    Raises:
        InputError: If k is out of range or the shares are none.

    Example:
        >>> round(max_skew(["a", "a", "b"], 2, {"a": 0.5, "b": 0.5}), 4)
        0.6931
    """
    return max(s for s in skews(ranked_groups, k, shares).values() if s is not None)


def ndkl(ranked_groups: Sequence[str], shares: Mapping[str, float] | None = None) -> float:
    """Normalised discounted cumulative Kullback-Leibler divergence (Geyik et al. 2019).

    The divergence, in nats, of the shares among the first i results from those desired, averaged
    over all i with weight 1 / log2(i + 1). It is 0 only in the limit: the first result alone has
    one group. `ranking_skew` says what a random order has.

    Args:
        ranked_groups: The group of each result, best first.
        shares: Group to its desired share; None for those of the whole ranking.

    Raises:
        InputError: If there are no results or the shares are none.

    Example:
        >>> ndkl(["a"], {"a": 0.5, "b": 0.5})
        0.6931471805599453
    """
    wanted = _shares(ranked_groups, shares)
    place = {g: i for i, g in enumerate(wanted)}
    return _ndkl(np.array([place[g] for g in ranked_groups]), np.array(list(wanted.values())))


def _ndkl(ranked: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    ranks = np.arange(1, len(ranked) + 1)
    found = np.eye(len(wanted))[ranked].cumsum(axis=0) / ranks[:, None]
    # 0 ln 0 is 0
    divergence = (found * np.log(np.where(found > 0, found, 1) / wanted)).sum(axis=1)
    return float(np.average(divergence, weights=1 / np.log2(ranks + 1)))


def _shares(ranked: Sequence[str], shares: Mapping[str, float] | None) -> dict[str, float]:
    """The desired shares, checked."""
    if not len(ranked):
        raise InputError("got no results: expected the group of at least one")
    if shares is None:
        return {g: count / len(ranked) for g, count in sorted(Counter(ranked).items())}
    missing = sorted(set(ranked) - set(shares))
    if missing:
        raise InputError(f'no share is given for "{missing[0]}": expected one for each group')
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"the shares are {dict(shares)}: expected each above 0 and 1 in all; leave out groups "
            "that cannot appear"
        )
    return dict(shares)


@dataclass(frozen=True)
class RankingSkew:
    """How far a ranking is from the desired shares.

    Attributes:
        n: Results.
        k: Results that MaxSkew looks at.
        max_skew: MaxSkew@k.
        max_skew_by_chance: Its mean over random orders of the same results.
        most: The group of that skew.
        ndkl: NDKL of the whole ranking.
        ndkl_by_chance: Its mean over random orders.
        p: Permutation p of the NDKL: the share of random orders as skewed.
    """

    n: int
    k: int
    max_skew: float
    max_skew_by_chance: float
    most: str
    ndkl: float
    ndkl_by_chance: float
    p: float


def ranking_skew(
    ranked_groups: Sequence[str],
    k: int,
    shares: Mapping[str, float] | None = None,
    *,
    permutations: int = 500,
    seed: int = 0,
) -> RankingSkew:
    """MaxSkew@k and NDKL beside what random orders of the same results have.

    Args:
        ranked_groups: The group of each result, best first.
        k: How many results MaxSkew looks at.
        shares: Group to its desired share; None for those of the whole ranking.
        permutations: Random orders.
        seed: Seed of the orders.

    Raises:
        InputError: If k is out of range or the shares are none.

    Example:
        >>> found = ranking_skew(["a"] * 10 + ["b"] * 10, 10)
        >>> found.most, found.ndkl > found.ndkl_by_chance, found.p < 0.01
        ('a', True, True)
    """
    own = {g: s for g, s in skews(ranked_groups, k, shares).items() if s is not None}
    most = max(own, key=lambda g: own[g])
    observed = ndkl(ranked_groups, shares)
    wanted = _shares(ranked_groups, shares)
    place = {g: i for i, g in enumerate(wanted)}
    ranked, goal = np.array([place[g] for g in ranked_groups]), np.array(list(wanted.values()))
    rng = np.random.default_rng(seed)
    drawn = np.empty((permutations, 2))
    for row in drawn:
        order = rng.permutation(ranked)
        top = np.bincount(order[:k], minlength=len(goal)) / k
        row[:] = _ndkl(order, goal), log((top / goal).max())
    return RankingSkew(
        n=len(ranked),
        k=k,
        max_skew=own[most],
        max_skew_by_chance=float(drawn[:, 1].mean()),
        most=most,
        ndkl=observed,
        ndkl_by_chance=float(drawn[:, 0].mean()),
        p=(1 + int((drawn[:, 0] >= observed - ROUNDING).sum())) / (1 + permutations),
    )
