from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from scipy.stats import kstest

from isthmus.auditing.measures.group_tests import each_group, each_pair
from isthmus.auditing.measures.groups import (
    GroupComparison,
    compare_columns,
    compare_groups,
)
from isthmus.auditing.measures.parity import _differences, parity
from isthmus.auditing.measures.permutation import Table, count_table, expected, holm, permuted
from isthmus.errors import InputError

Ints = Any


def simulated(
    rng: np.random.Generator, groups: Ints, targets: Ints, accuracy: Any, classes: int = 4
) -> tuple[Ints, Ints]:
    """Targets and predictions; `accuracy` is the chance of each image to be recognised."""
    right = rng.random(len(targets)) < accuracy
    return targets, np.where(right, targets, (targets + 1) % classes)


def compared(
    rng: np.random.Generator, groups: Ints, targets: Ints, accuracy: Any, **options: Any
) -> GroupComparison:
    truth, said = simulated(rng, groups, targets, accuracy)
    return compare_groups(truth, said, ["abcdef"[g] for g in groups], 4, **options)


# --- Planted truths ---------------------------------------------------------------------------


def test_a_spurious_cue_is_a_gap_within_labels_too() -> None:
    rng = np.random.default_rng(0)
    groups, targets = rng.integers(0, 2, 600), rng.integers(0, 4, 600)
    found = compared(rng, groups, targets, np.where(groups == 0, 0.9, 0.6))
    assert (found.best, found.worst) == ("a", "b")
    assert found.gap == pytest.approx(0.3, abs=0.08)
    assert found.by_chance is not None
    assert found.by_chance < 0.06
    assert found.p == found.p_within_labels == 1 / 2001
    assert all(g.p_holm < 0.01 and (g.p_within_labels or 1) < 0.01 for g in found.groups)
    assert found.pairs[0].p == found.pairs[0].p_within_labels == 1 / 2001
    assert found.pairs[0].difference == found.gap


def test_every_pair_is_that_of_its_own_groups() -> None:
    rng = np.random.default_rng(0)
    groups, targets = rng.integers(0, 3, 900), rng.integers(0, 4, 900)
    found = compared(rng, groups, targets, np.array([0.85, 0.85, 0.6])[groups])
    accuracy = {g.name: g.accuracy for g in found.groups}
    assert [p.first + p.second for p in found.pairs] == ["ab", "ac", "bc"]
    for pair in found.pairs:
        assert pair.difference == pytest.approx(accuracy[pair.first] - accuracy[pair.second])
        assert (pair.p_holm < 0.002) == (pair.second == "c")
        assert ((pair.p_within_labels or 0) < 0.002) == (pair.second == "c")


def test_a_gap_from_labels_alone_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 800)
    hard = targets < 2
    groups = (rng.random(800) < np.where(hard, 0.8, 0.2)).astype(int)
    found = compared(rng, groups, targets, np.where(hard, 0.5, 0.95))
    assert found.worst == "b"
    assert found.p == 1 / 2001
    assert found.p_within_labels is not None
    assert found.p_within_labels > 0.1
    assert found.gap is not None
    assert found.by_labels == pytest.approx(0.27, abs=0.06)
    assert found.gap_within_labels is not None
    assert found.gap_within_labels < 0.08 < found.gap
    for group in found.groups:
        assert group.p_within_labels == pytest.approx(found.p_within_labels, abs=0.03)
    assert found.pairs[0].p < 0.01 < 0.1 < (found.pairs[0].p_within_labels or 0)


def test_a_cue_that_labels_hide_is_found() -> None:
    # Simpson's paradox: group b has the easy labels and is served worse in each
    targets = np.repeat([0, 1], 400)
    groups = np.concatenate([np.repeat([0, 1], [300, 100]), np.repeat([0, 1], [100, 300])])
    right = np.concatenate(
        [np.arange(300) < 180, np.arange(100) < 40, np.arange(100) < 100, np.arange(300) < 240]
    )
    found = compare_groups(targets, np.where(right, targets, 3), groups.tolist(), 4)
    assert found.gap == 0.0
    assert found.p == 1.0
    assert found.p_within_labels == 1 / 2001
    # label 0 has accuracy 220 / 400, label 1 340 / 400
    assert found.groups[0].expected == pytest.approx((300 * 0.55 + 100 * 0.85) / 400)
    assert found.gap_within_labels == pytest.approx((280 - 250) / 400 * 2)


# --- Null data --------------------------------------------------------------------------------


def test_the_gap_s_p_values_are_uniform_where_nothing_is_planted() -> None:
    """Groups have other labels, and labels other accuracies: nothing differs within labels."""
    rng = np.random.default_rng(5)
    within, freely, alike, gaps, chance = [], [], [], [], []
    for trial in range(200):
        targets = rng.integers(0, 3, 300)
        groups = (rng.random(300) * 3 + 0.4 * targets).astype(int).clip(0, 2)
        accuracy = np.array([0.5, 0.65, 0.8])[targets]
        other = compared(rng, groups, targets, accuracy, permutations=399, odds=False, seed=trial)
        within.append(other.p_within_labels)
        freely.append(other.p)
        same = compared(rng, groups, targets, 0.65, permutations=399, odds=False, seed=trial)
        alike.append(same.p)
        gaps.append(same.gap)
        chance.append(same.by_chance)
    assert kstest(within, "uniform").pvalue > 0.01
    assert kstest(freely, "uniform").pvalue < 1e-6  # the check can fail
    assert kstest(alike, "uniform").pvalue > 0.01
    # The gap by chance is what gaps are on average where there is nothing
    assert np.mean(chance) == pytest.approx(np.mean(gaps), rel=0.08)  # type: ignore[arg-type]


def test_groups_and_pairs_p_values_are_uniform_where_nothing_is_planted() -> None:
    """Tables of many images: with few, a count is often at its mean, and p is then 1."""
    rng = np.random.default_rng(7)
    images = 500 * np.array([[9, 5, 3], [4, 6, 8], [2, 3, 7]])
    ps: dict[str, list[float | None]] = {"group": [], "pair": [], "free group": [], "free pair": []}
    for _ in range(300):
        table = Table(images, rng.binomial(images, [0.5, 0.65, 0.8]))
        free, within = (permuted(t, 399, rng) for t in (table.merged(), table))
        groups, pairs = each_group("abc", table, free, within), each_pair("abc", table, 399, rng)
        ps["group"].append(groups[2].p_within_labels)
        ps["pair"].append(pairs[1].p_within_labels)
        table = Table(images, rng.binomial(images, 0.7))
        groups = each_group("abc", table, permuted(table.merged(), 399, rng), None)
        ps["free group"].append(groups[0].p)
        ps["free pair"].append(each_pair("abc", table, 399, rng)[2].p)
    for name, found in ps.items():
        assert kstest(found, "uniform").pvalue > 0.01, name


def test_draws_are_permutations() -> None:
    rng = np.random.default_rng(0)
    groups, targets = rng.integers(0, 3, 60), rng.integers(0, 2, 60)
    right = rng.random(60) < np.where(targets == 0, 0.3, 0.8)
    table = count_table(groups, targets, right)
    drawn = permuted(table, 20_000, rng)
    shuffled = np.empty((20_000, 3))
    for row in shuffled:
        moved = groups.copy()
        for label in (0, 1):
            own = targets == label
            moved[own] = rng.permutation(groups[own])
        row[:] = np.bincount(moved[right], minlength=3)
    assert (drawn.sum(axis=1) == right.sum()).all()
    np.testing.assert_allclose(drawn.mean(axis=0), expected(table), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(shuffled.T), atol=0.15)
    np.testing.assert_allclose(
        np.quantile(np.ptp(drawn, axis=1), (0.1, 0.5, 0.9)),
        np.quantile(np.ptp(shuffled, axis=1), (0.1, 0.5, 0.9)),
        atol=1,
    )


def test_a_small_p_value_is_the_exact_one() -> None:
    # Fisher's lady: all 70 ways of putting 4 right answers of 8 into two groups of 4
    right = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
    groups = np.repeat([0, 1], 4)
    ways = set(permutations(groups.tolist()))
    exact = np.mean([abs(right[np.array(w) == 0].sum() - 2) >= 1 for w in ways])
    found = compare_groups(
        np.zeros(8, dtype=int),
        1 - right.astype(int),
        groups.tolist(),
        2,
        least=4,
        permutations=20_000,
    )
    assert exact == pytest.approx(34 / 70)
    assert found.p == pytest.approx(exact, abs=0.012)
    assert found.pairs[0].p == pytest.approx(exact, abs=0.012)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04, and never falls
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- fairlearn --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_parity_is_fairlearns_for_each_class(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.auditing.measures.parity.MOST_ROWS", 900)  # two classes at once
    rng = np.random.default_rng(classes)
    groups, targets = rng.integers(0, 3, 400), rng.integers(0, classes, 400)
    said = np.where(rng.random(400) < 0.5 + 0.15 * groups, targets, rng.integers(0, classes, 400))
    names = ["abc"[g] for g in groups]
    found = compare_groups(targets, said, names, classes).parity
    assert found is not None
    yes = [(targets == c, said == c) for c in range(classes)]
    selection = [demographic_parity_difference(*y, sensitive_features=names) for y in yes]
    odds = [equalized_odds_difference(*y, sensitive_features=names) for y in yes]
    assert found.demographic_parity == pytest.approx(np.mean(selection))
    assert found.equalized_odds == pytest.approx(np.mean(odds))
    assert (found.classes, found.left_out) == (classes, 0)
    own = _differences(targets, said, groups)
    np.testing.assert_allclose(own[0], selection)
    np.testing.assert_allclose(own[1], odds)


def test_equalised_odds_by_chance_are_those_of_groups_served_alike() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(15):
        groups, targets = rng.integers(0, 2, 200), rng.integers(0, 4, 200)
        truth, said = simulated(rng, groups, targets, 0.6)
        found.append(parity(truth, said, groups, rng=rng))
    assert np.mean([f.equalized_odds for f in found]) == pytest.approx(  # type: ignore[arg-type]
        np.mean([f.equalized_odds_by_chance for f in found]),
        rel=0.15,  # type: ignore[arg-type]
    )
    assert np.mean([f.demographic_parity for f in found]) == pytest.approx(
        np.mean([f.demographic_parity_by_chance for f in found]), rel=0.15
    )


def test_classes_that_a_group_lacks_are_left_out_of_the_odds() -> None:
    targets = np.array([0, 0, 1, 1, 2, 0, 0, 1, 1, 1])
    groups = np.array([0] * 5 + [1] * 5)
    said = np.array([0, 1, 1, 1, 2, 0, 0, 1, 0, 0])
    found = parity(targets, said, groups, rng=np.random.default_rng(0))
    assert (found.classes, found.left_out) == (2, 1)
    # class 0: true 1/2 and 1, false 0 and 2/3; class 1: true 1 and 1/3, false 1/3 and 0
    assert found.equalized_odds == pytest.approx(2 / 3)
    # shares called 0: 1/5 and 4/5; 1: 3/5 and 1/5; 2: 1/5 and 0
    assert found.demographic_parity == pytest.approx((3 / 5 + 2 / 5 + 1 / 5) / 3)
    apart = parity(groups, groups, groups, rng=np.random.default_rng(0))
    assert (apart.equalized_odds, apart.equalized_odds_by_chance) == (None, None)
    assert apart.demographic_parity == 1.0


# --- Which images -----------------------------------------------------------------------------


def test_missing_and_small_groups_are_counted_and_left_out() -> None:
    rng = np.random.default_rng(0)
    truth, said = simulated(rng, None, rng.integers(0, 4, 100), 0.7)
    groups: list[Any] = ["a"] * 50 + ["b"] * 40 + ["c"] * 4 + [None, "", float("nan")] + [None] * 3
    found = compare_groups(truth, said, groups, 4)
    alone = compare_groups(truth[:90], said[:90], groups[:90], 4)
    assert (found.n, found.missing, found.small) == (90, 6, {"c": 4})
    assert found.groups == alone.groups
    assert (found.gap, found.p, found.parity) == (alone.gap, alone.p, alone.parity)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 12 + [None] * 8, '1 of 1 groups, "a" have 10 images or more'),
        (["a"] * 12 + ["b"] * 8, '1 of 2 groups, "a" have 10 images or more'),
        ([None] * 20, "0 of 0 groups have 10 images or more"),
    ],
)
def test_too_few_groups_are_said_and_no_error(groups: list[Any], message: str) -> None:
    found = compare_groups([0] * 20, [0] * 20, groups, 2)
    assert message in found.note
    assert (found.gap, found.p, found.worst, found.groups, found.parity) == (None,) * 3 + ((), None)
    assert compare_columns([0] * 20, [0] * 20, {"x": groups}, 2)[0].p_holm is None


def test_groups_of_other_labels_cannot_be_told_apart() -> None:
    targets = np.repeat([0, 1, 2, 2], 20)
    groups = ["a"] * 20 + ["b"] * 20 + ["c"] * 20 + ["d"] * 20
    said = np.where(np.arange(80) % 3 == 0, 3, targets)
    found = compare_groups(targets, said, groups, 4)
    assert [g.p_within_labels is None for g in found.groups] == [True, True, False, False]
    within = [pair.first + pair.second for pair in found.pairs if pair.p_within_labels is not None]
    assert within == ["cd"]
    apart = compare_groups(targets[:40], said[:40], groups[:40], 4)
    assert (apart.p_within_labels, apart.by_labels) == (None, None)
    assert "cannot be told apart" in apart.note
    assert apart.p is not None


def test_intersections_find_what_single_columns_hide() -> None:
    rng = np.random.default_rng(0)
    age, light = rng.integers(0, 2, 800), rng.integers(0, 2, 800)
    targets = rng.integers(0, 4, 800)
    # Only the crossing matters: old in dim light and young in bright light
    truth, said = simulated(rng, None, targets, np.where(age == light, 0.9, 0.6))
    columns: dict[str, list[Any]] = {
        "age": [("young", "old")[a] for a in age],
        "light": [("dim", "bright")[x] for x in light],
    }
    columns["age"][0] = None
    found = compare_columns(truth, said, columns, 4, permutations=500)
    assert [c.column for c in found] == ["age", "light", "age, light"]
    assert [c.p is not None and c.p < 0.01 for c in found] == [False, False, True]
    assert {g.name for g in found[2].groups} == {
        "young, dim",
        "young, bright",
        "old, dim",
        "old, bright",
    }
    assert [c.missing for c in found] == [1, 0, 1]
    assert [c.p_holm for c in found] == pytest.approx(holm([c.p or 0 for c in found]))
    assert found[2].p_holm == pytest.approx(3 / 501)
    assert len(found[2].pairs) == 6


def test_many_groups_are_compared_with_the_rest_alone() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 20)
    truth, said = simulated(rng, groups, rng.integers(0, 4, 180), np.where(groups == 4, 0.2, 0.9))
    found = compare_groups(truth, said, groups.tolist(), 4)
    assert found.pairs == ()
    assert "There are 9 groups" in found.note
    assert [g.name for g in found.groups if g.p_holm < 0.05] == ["4"]
    assert found.worst == "4"


def test_same_seed_same_numbers() -> None:
    rng = np.random.default_rng(0)
    truth, said = simulated(rng, None, rng.integers(0, 4, 100), 0.7)
    groups = rng.integers(0, 2, 100).tolist()
    first, again, other = (compare_groups(truth, said, groups, 4, seed=s) for s in (1, 1, 2))
    assert first == again
    assert replace(first, parity=None) == compare_groups(truth, said, groups, 4, odds=False, seed=1)
    assert first.by_chance != other.by_chance


def test_lengths_that_differ_are_said() -> None:
    with pytest.raises(InputError, match='column "age" has 1 values for 2 images'):
        compare_columns([0, 0], [0, 1], {"light": ["a", "b"], "age": ["x"]}, 2)


def test_tables_of_some_groups() -> None:
    table = Table(np.array([[1, 2], [3, 4], [5, 6]]), np.array([[1, 0], [2, 2], [3, 3]]))
    assert table.of([0, 2]).images.tolist() == [[1, 2], [5, 6]]
    assert table.merged().right.tolist() == [[1], [4], [6]]
