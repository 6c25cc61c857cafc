from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from isthmus.auditing.measures.associations import association, shape_bias, single_association
from isthmus.errors import InputError

X = np.array([[1.0, 0.0], [0.6, 0.8]])
Y = np.array([[0.0, 1.0], [0.8, 0.6]])
A, B = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])


def sets(seed: int, *sizes: int, width: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, width)) for n in sizes]


def test_a_closed_form_by_hand() -> None:
    # Associations are 1 and -0.2, and -1 and 0.2: means 0.4 and -0.4, sum of squares 2.08 of 4
    found = association(X, Y, A, B)
    assert found.difference == pytest.approx(0.8)
    assert found.effect_size == pytest.approx(0.8 / sqrt(2.08 / 3))
    # The six partitions differ by 0.8, 0, 1.2, -1.2, 0 and -0.8
    assert (found.p, found.p_two_sided) == pytest.approx((2 / 6, 4 / 6))
    assert (found.exact, found.partitions) == (True, 6)
    assert found.similarities["first/A"].mean == pytest.approx(0.8)
    assert found.similarities["first/A"].sd == pytest.approx(sqrt(0.08))
    assert found.similarities["second/B"].mean == pytest.approx(0.8)
    json.dumps(asdict(found), allow_nan=False)


def test_a_single_category_by_hand() -> None:
    # Similarities 1 and 0.6 with A, 0 and -0.8 with B: deviations from 0.2 are .8 .4 -.2 -1
    a, b = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0], [-0.8, 0.6]])
    found = single_association(np.array([[2.0, 0.0]]), a, b)
    assert found.difference == pytest.approx(1.2)
    assert found.effect_size == pytest.approx(1.2 / sqrt(1.84 / 3))
    assert (found.p, found.p_two_sided) == pytest.approx((1 / 6, 2 / 6))


def test_levels_add_up() -> None:
    x, y, a, b = sets(0, 5, 7, 4, 3)
    found = association(x, y, a, b)
    means = {name: s.mean for name, s in found.similarities.items()}
    assert found.first == single_association(x, a, b)
    assert found.first.difference == pytest.approx(means["first/A"] - means["first/B"])
    assert found.second.difference == pytest.approx(means["second/A"] - means["second/B"])
    assert found.difference == pytest.approx(found.first.difference - found.second.difference)


def test_symmetries() -> None:
    x, y, a, b = sets(1, 6, 6, 4, 3)
    found = association(x, y, a, b)
    assert found.effect_size is not None
    turned, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    longer = np.random.default_rng(3).uniform(0.1, 9, size=(6, 1))
    same = association(torch.tensor(x * longer @ turned), y @ turned, a @ turned, b @ turned)
    assert same.effect_size == pytest.approx(found.effect_size)
    assert same.p == pytest.approx(found.p)
    for swapped in (association(y, x, a, b), association(x, y, b, a)):
        assert swapped.effect_size == pytest.approx(-found.effect_size)
        assert swapped.p == pytest.approx(1 - found.p + 1 / found.partitions)
        assert swapped.p_two_sided == pytest.approx(found.p_two_sided)


def test_drawn_partitions_agree_with_all_of_them() -> None:
    x, y, a, b = sets(4, 9, 9, 5, 5)
    found = association(x + a.mean(axis=0), y, a, b, permutations=20_000)
    assert not found.exact
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in (x + a.mean(axis=0), y, a, b)]
    own = np.concatenate(
        [s @ unit[2].T.mean(axis=1) - s @ unit[3].T.mean(axis=1) for s in unit[:2]]
    )
    rows = np.array(list(combinations(range(18), 9)))
    exact = (own[rows].sum(axis=1) >= own[:9].sum() - 1e-12).mean()
    assert 0.02 < exact < 0.9
    assert found.p == pytest.approx(exact, abs=0.012)


@pytest.mark.parametrize("sizes", [(5, 6), (12, 9)])  # all partitions, and drawn ones
def test_p_values_are_uniform_where_nothing_is_planted(sizes: tuple[int, int]) -> None:
    found = [
        association(*sets(seed, *sizes, 4, 4), permutations=499, seed=seed) for seed in range(300)
    ]
    assert found[0].exact == (sizes == (5, 6))
    for ps in ([f.p for f in found], [f.p_two_sided for f in found]):
        assert kstest(ps, "uniform").pvalue > 0.01
    planted = [
        association(x + a.mean(axis=0), y, a, b, permutations=499)
        for x, y, a, b in (sets(seed, *sizes, 4, 4) for seed in range(100))
    ]
    assert kstest([f.p for f in planted], "uniform").pvalue < 0.001


def test_the_effect_size_hides_how_small_the_similarities_are() -> None:
    """A common direction in all vectors shrinks every difference, and no effect size with it."""
    x, y, a, b = sets(5, 8, 8, 4, 4)
    x, y = x + a.mean(axis=0), y + b.mean(axis=0)
    common = 200 * np.ones(6)
    plain = association(x, y, a, b)
    narrow = association(*(s + common for s in (x, y, a, b)))
    assert plain.effect_size is not None
    assert narrow.effect_size is not None
    assert narrow.effect_size > 0.5 * plain.effect_size > 0.3
    assert abs(narrow.difference) < plain.difference / 1000
    assert all(s.mean > 0.999 for s in narrow.similarities.values())
    assert "read it with" in narrow.note


def test_sets_that_lean_one_way_are_said() -> None:
    assert "Both sets are nearer to A" in association(A, A + 0.2 * B, A, B).note
    assert "Both sets are nearer to B" in association(B, B + 0.2 * A, A, B).note
    assert "nearer" not in association(X, Y, A, B).note
    alike = association(np.vstack([A, A]), A, A, B)
    assert alike.effect_size is None
    assert alike.p == 1.0
    assert "All associations are equal" in alike.note


def test_what_has_no_direction_is_said() -> None:
    with pytest.raises(InputError, match='"second" holds a vector of length 0'):
        association(X, np.zeros((1, 2)), A, B)
    with pytest.raises(InputError, match='"a" have width 3, others 2'):
        association(X, Y, np.ones((1, 3)), B)
    with pytest.raises(InputError, match=r'"b" has shape \(0, 2\)'):
        association(X, Y, A, np.zeros((0, 2)))
    with pytest.raises(InputError, match="not of finite numbers"):
        single_association(np.array([[np.nan, 1.0]]), A, B)


def test_shape_decisions_are_a_share_of_those_for_either() -> None:
    # Shape, texture, said: three for the shape, one for the texture, one for neither, one same
    rows = np.array([[0, 1, 0], [0, 2, 0], [1, 0, 1], [1, 2, 2], [2, 1, 0], [2, 2, 2]])
    found = shape_bias(rows[:, 0], rows[:, 1], rows[:, 2], ["cat", "dog", "cow"])
    assert (found.n, found.same, found.shape, found.texture, found.neither) == (5, 1, 3, 1, 1)
    assert found.shape_share == 0.75
    assert found.interval is not None
    assert found.interval[0] < 0.75 < found.interval[1]
    assert found.by_class == {"cat": 1.0, "dog": 0.5, "cow": None}
    json.dumps(asdict(found), allow_nan=False)
    same = shape_bias([1], [1], [1], ["cat", "dog"])
    assert (same.n, same.shape_share, same.interval, same.by_class) == (0, None, None, {})
