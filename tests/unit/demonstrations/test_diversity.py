from __future__ import annotations

import itertools

import numpy as np
import pytest

from isthmus.demonstrations.diversity import (
    _beginning,
    dpp,
    dpp_kernel,
    kmeans,
    mmr,
    squared_distances,
)
from isthmus.errors import ConfigError


def unit(seed: int, n: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- MMR -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_mmr_equals_the_formula_step_by_step(seed: int, balance: float) -> None:
    vectors, query = unit(seed, 9, 4), unit(seed + 100, 1, 4)[0]
    relevance, similarity = vectors @ query, vectors @ vectors.T
    chosen = [max(range(9), key=lambda d: relevance[d])]
    while len(chosen) < 6:
        gains = {
            d: balance * relevance[d] - (1 - balance) * max(similarity[d][s] for s in chosen)
            for d in range(9)
            if d not in chosen
        }
        chosen.append(max(gains, key=lambda d: gains[d]))
    assert mmr(relevance, similarity, 6, balance) == chosen


def test_mmr_with_relevance_alone_is_the_ranking() -> None:
    vectors, query = unit(0, 9, 4), unit(1, 1, 4)[0]
    expected = np.argsort(-(vectors @ query)).tolist()
    assert mmr(vectors @ query, vectors @ vectors.T, 9, balance=1) == expected


def test_mmr_takes_the_other_before_the_duplicate() -> None:
    vectors = np.array([[0.8, 0.6], [0.8, 0.6], [0.8, -0.6]])
    assert mmr(vectors[:, 0], vectors @ vectors.T, 3, balance=0.5) == [0, 2, 1]


# --- DPP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_greedy_dpp_maximises_the_determinant_at_each_step(seed: int) -> None:
    vectors, query = unit(seed, 10, 6), unit(seed + 50, 1, 6)[0]
    kernel = dpp_kernel(vectors @ query, vectors @ vectors.T, scale=0.3)
    chosen: list[int] = []
    while len(chosen) < 5:
        dets = {
            d: np.linalg.det(kernel[np.ix_([*chosen, d], [*chosen, d])])
            for d in range(10)
            if d not in chosen
        }
        chosen.append(max(dets, key=lambda d: dets[d]))
    assert dpp(kernel, 5) == chosen


def test_greedy_dpp_finds_the_best_pair_where_greed_is_enough() -> None:
    vectors = unit(3, 7, 7)
    quality = np.diag([3.0, 2.5, 2.0, 1.0, 1.0, 1.0, 1.0])
    kernel = quality @ vectors @ vectors.T @ quality
    best = max(
        itertools.combinations(range(7), 2), key=lambda s: np.linalg.det(kernel[np.ix_(s, s)])
    )
    assert set(dpp(kernel, 2)) == set(best)


def test_dpp_kernel_equals_its_formula() -> None:
    vectors, query = unit(0, 4, 3), unit(1, 1, 3)[0]
    kernel = dpp_kernel(vectors @ query, vectors @ vectors.T, scale=0.1)
    to_query = [(v @ query + 1) / 2 for v in vectors]
    for i, j in itertools.product(range(4), repeat=2):
        r_i, r_j = (np.exp((to_query[x] - max(to_query)) / (2 * 0.1)) for x in (i, j))
        assert kernel[i, j] == pytest.approx(r_i * (vectors[i] @ vectors[j] + 1) / 2 * r_j)
    assert np.linalg.eigvalsh(kernel).min() > -1e-12


def test_dpp_fills_up_with_the_most_relevant_once_the_determinant_is_zero() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.0], [0.0, 0.5], [0.7, 0.0]])
    assert dpp(vectors @ vectors.T, 5) == [0, 1, 2, 4, 3]
    assert dpp(np.zeros((3, 3)), 2) == [0, 1]


def test_a_longer_choice_begins_with_the_shorter_one() -> None:
    vectors = unit(0, 12, 5)
    kernel = dpp_kernel(vectors[:, 0], vectors @ vectors.T)
    for k in range(12):
        assert dpp(kernel, 12)[:k] == dpp(kernel, k)
        assert mmr(vectors[:, 0], vectors @ vectors.T, 12)[:k] == mmr(
            vectors[:, 0], vectors @ vectors.T, k
        )


@pytest.mark.parametrize("choose", [lambda k: mmr([1], [[1]], k), lambda k: dpp([[1]], k)])
def test_more_than_there_are_is_an_error(choose: object) -> None:
    assert callable(choose)
    for k in (2, -1):
        with pytest.raises(ConfigError, match=f"asked for {k} of 1"):
            choose(k)


def test_numbers_out_of_range_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"balance is 1\.5"):
        mmr([1], [[1]], 1, balance=1.5)
    with pytest.raises(ConfigError, match="scale is 0"):
        dpp_kernel([1], [[1]], scale=0)


# --- k-means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "k"), [(0, 2), (1, 5), (2, 9), (3, 40)])
def test_kmeans_ends_at_a_fixed_point(seed: int, k: int) -> None:
    points = np.random.default_rng(seed).normal(size=(40, 3))
    labels, centroids = kmeans(points, k, seed)
    assert (squared_distances(points, centroids).argmin(axis=1) == labels).all()
    for c in range(k):
        np.testing.assert_allclose(centroids[c], points[labels == c].mean(axis=0))
    assert [list(labels).index(c) for c in range(k)] == sorted(
        list(labels).index(c) for c in range(k)
    )


def test_kmeans_finds_clusters_that_are_there() -> None:
    random = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    true = random.integers(0, 4, 80)
    labels, centroids = kmeans(centres[true] + random.normal(scale=0.5, size=(80, 2)), 4)
    assert len(set(zip(true.tolist(), labels.tolist(), strict=True))) == 4
    for c in range(4):
        assert np.abs(centres - centroids[c]).sum(axis=1).min() < 1


def test_kmeans_is_the_best_partition_of_few_points() -> None:
    points = np.array([[0.0], [1.0], [5.0], [6.0], [20.0]])

    def cost(labels: tuple[int, ...]) -> float:
        groups = [points[np.array(labels) == c] for c in set(labels)]
        return sum(float(((g - g.mean(axis=0)) ** 2).sum()) for g in groups)

    best = min((p for p in itertools.product(range(3), repeat=5) if len(set(p)) == 3), key=cost)
    labels, _ = kmeans(points, 3)
    assert cost(tuple(labels.tolist())) == pytest.approx(cost(best))


def test_kmeans_depends_on_its_seed_alone() -> None:
    points = np.random.default_rng(0).normal(size=(60, 8))
    np.random.seed(1)
    first = kmeans(points, 7, 3)
    np.random.seed(2)
    assert (first[0] == kmeans(points, 7, 3)[0]).all()


def test_duplicates_leave_no_cluster_empty() -> None:
    points = np.repeat(np.eye(3), [20, 1, 20], axis=0)
    labels, centroids = kmeans(points, 3)
    assert np.bincount(labels).tolist() == [20, 1, 20]
    np.testing.assert_allclose(centroids, np.eye(3))
    with pytest.raises(ConfigError, match="asked for 4 clusters of 41 vectors, 3 of them"):
        kmeans(points, 4)


def test_beginnings_are_drawn_by_the_square_of_the_distance() -> None:
    points, random = np.array([[0.0], [1.0], [3.0]]), np.random.default_rng(0)
    drawn = [_beginning(points, 2, random)[:, 0].tolist() for _ in range(3000)]
    after_zero = [second for first, second in drawn if first == 0]
    assert len(after_zero) == pytest.approx(1000, abs=120)
    assert np.mean([second == 3 for second in after_zero]) == pytest.approx(0.9, abs=0.04)
