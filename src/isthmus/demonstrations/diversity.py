"""Choosing things that are relevant and unlike each other: MMR, DPP, k-means. NumPy alone.

Letters: n candidates, k chosen, D the width of a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import ConfigError

Floats = NDArray[np.float64]
RESTARTS = 4
"""Beginnings that k-means tries; the tightest clusters win."""
MOST_ROUNDS = 100


def _check(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ConfigError(f"asked for {k} of {n}: expected 0 to {n}")


def mmr(relevance: Any, similarity: Any, k: int, balance: float = 0.5) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998, section 2).

    Chooses, one at a time, the candidate d with the largest

        balance * relevance(d) - (1 - balance) * max over the chosen s of similarity(d, s)

    Args:
        relevance: (n,) similarity of each candidate to the query.
        similarity: (n, n) similarity of candidates to each other, on the same scale.
        k: How many to choose.
        balance: The paper's lambda: 1 looks at relevance alone, 0 at diversity after the first.

    Returns:
        k numbers in the order of choice, the first of equals first.

    Raises:
        ConfigError: If k or the balance is out of range.

    Example:
        >>> mmr([0.9, 0.8, 0.1], [[1, 1, 0], [1, 1, 0], [0, 0, 1]], 2)
        [0, 2]
    """
    relevance, similarity = np.asarray(relevance, float), np.asarray(similarity, float)
    _check(k, len(relevance))
    if not 0 <= balance <= 1:
        raise ConfigError(f"balance is {balance}: expected 0 to 1")
    chosen: list[int] = []
    free = np.ones(len(relevance), bool)
    nearest = np.zeros(len(relevance))
    while len(chosen) < k:
        # The first is the most relevant whatever the balance: nothing is there to differ from
        gain = balance * relevance - (1 - balance) * nearest if chosen else relevance
        best = int(np.argmax(np.where(free, gain, -np.inf)))
        nearest = np.maximum(nearest, similarity[best]) if chosen else similarity[best]
        chosen.append(best)
        free[best] = False
    return chosen


def dpp_kernel(relevance: Any, similarity: Any, scale: float = 0.1) -> Floats:
    """A DPP's kernel of cosines: L_ij = r_i s_ij r_j (CEIL, Ye et al. 2023).

    With s = (cos + 1) / 2 between candidates, and r = exp((s_q - max s_q) / (2 scale)) of the same
    with the query.

    Args:
        relevance: (n,) cosines of each candidate with the query.
        similarity: (n, n) cosines of candidates.
        scale: How much relevance counts against diversity; the smaller, the more.

    Returns:
        (n, n), positive semidefinite.

    Raises:
        ConfigError: If the scale is not above 0.

    Example:
        >>> dpp_kernel([1.0, 1.0], [[1.0, -1.0], [-1.0, 1.0]]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if scale <= 0:
        raise ConfigError(f"scale is {scale}: expected a number above 0")
    to_query = (np.asarray(relevance, float) + 1) / 2
    quality = np.exp((to_query - to_query.max(initial=0)) / (2 * scale))
    kernel: Floats = quality[:, None] * (np.asarray(similarity, float) + 1) / 2 * quality
    return kernel


def dpp(kernel: Any, k: int) -> list[int]:
    """Greedy MAP inference of a determinantal point process (Chen et al. 2018, algorithm 1).

    Each step adds the candidate with which the determinant of the chosen rows and columns is
    largest. A Cholesky factor grows by a row a step, so that all of it costs O(n k^2).

    Args:
        kernel: (n, n), positive semidefinite.
        k: How many to choose.

    Returns:
        k numbers in the order of choice. Once nothing can be added without a determinant of 0
        (duplicates of what is chosen), the largest diagonal entries follow.

    Raises:
        ConfigError: If k is out of range.

    Example:
        >>> dpp([[2, 2, 0], [2, 2, 0], [0, 0, 1]], 2)
        [0, 2]
    """
    kernel = np.asarray(kernel, float)
    _check(k, len(kernel))
    diagonal = np.diagonal(kernel)
    gains = diagonal.astype(float)
    smallest = 1e-10 * gains.max(initial=0)
    rows = np.zeros((k, len(kernel)))
    chosen: list[int] = []
    while len(chosen) < k:
        left = np.setdiff1d(np.arange(len(kernel)), chosen)
        best = int(left[np.argmax(gains[left])])
        if gains[best] <= smallest:
            chosen += left[np.argsort(-diagonal[left], kind="stable")][: k - len(chosen)].tolist()
            break
        done = rows[: len(chosen)]
        row = (kernel[best] - done[:, best] @ done) / np.sqrt(gains[best])
        rows[len(chosen)] = row
        gains = gains - row**2
        chosen.append(best)
    return chosen


def kmeans(vectors: Any, k: int, seed: int = 0) -> tuple[NDArray[np.int64], Floats]:
    """k-means clusters (Lloyd 1982), begun by k-means++ (Arthur and Vassilvitskii 2007).

    The tightest of four beginnings. Clusters are numbered in the order in which they first
    appear, so that the same vectors have the same numbers.

    Args:
        vectors: (n, D).
        k: Number of clusters.
        seed: Of the beginnings.

    Returns:
        (n,) the number of each vector's cluster, and (k, D) the clusters' means. No cluster is
        empty.

    Raises:
        ConfigError: If there are fewer different vectors than clusters.

    Example:
        >>> labels, centroids = kmeans([[0.0], [9.0], [1.0], [8.0]], 2)
        >>> labels.tolist(), centroids.tolist()
        ([0, 1, 0, 1], [[0.5], [8.5]])
    """
    points = np.asarray(vectors, float)
    if points.ndim != 2:
        raise ConfigError(f"vectors of shape {points.shape}: expected (n, D)")
    different = len(np.unique(points, axis=0))
    if not 1 <= k <= different:
        raise ConfigError(
            f"asked for {k} clusters of {len(points)} vectors, {different} of them different: "
            f"expected 1 to {different}"
        )
    random = np.random.default_rng(seed)
    tries = [_lloyd(points, _beginning(points, k, random)) for _ in range(RESTARTS)]
    labels, centroids = min(tries, key=lambda t: float(((points - t[1][t[0]]) ** 2).sum()))
    _, first = np.unique(labels, return_index=True)
    order = np.argsort(first)
    return np.argsort(order)[labels], centroids[order]


def squared_distances(points: Floats, centroids: Floats) -> Floats:
    """(n, k) squared distances of points (n, D) to centroids (k, D)."""
    found: Floats = np.stack([((points - c) ** 2).sum(axis=1) for c in centroids], axis=1)
    return found


def _beginning(points: Floats, k: int, random: np.random.Generator) -> Floats:
    """Different points, each drawn with the square of its distance to those before it."""
    chosen = [int(random.integers(len(points)))]
    while len(chosen) < k:
        away = squared_distances(points, points[chosen]).min(axis=1)
        chosen.append(int(random.choice(len(points), p=away / away.sum())))
    return points[chosen]


def _lloyd(points: Floats, centroids: Floats) -> tuple[NDArray[np.int64], Floats]:
    labels = np.full(len(points), -1)
    for _ in range(MOST_ROUNDS):
        away = squared_distances(points, centroids)
        nearest = away.argmin(axis=1)
        for empty in np.setdiff1d(np.arange(len(centroids)), nearest):
            # A cluster that lost its points begins anew at the one farthest from its own,
            # unless that would empty another
            alone = np.bincount(nearest, minlength=len(centroids))[nearest] == 1
            far = np.where(alone, -1.0, away[np.arange(len(points)), nearest])
            moved = int(far.argmax())
            nearest[moved], away[moved, empty] = empty, 0.0
        if (nearest == labels).all():
            break
        labels = nearest
        centroids = np.stack([points[labels == c].mean(axis=0) for c in range(len(centroids))])
    return labels, centroids
