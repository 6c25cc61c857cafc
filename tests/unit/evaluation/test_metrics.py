from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.evaluation.metrics import (
    bootstrap_difference,
    character_error_rate,
    edit_distance,
    majority,
    mcnemar,
    vqa_accuracy,
    wilson,
)
from isthmus.prompts.answers import vqa_normalize


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_newcombes_table(right: int, n: int, low: float, high: float) -> None:
    got = wilson(right, n)
    assert got == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 400), st.data())
def test_wilsons_ends_are_where_the_score_test_turns(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    for end in wilson(right, n):
        if 1e-9 < end < 1 - 1e-9:  # |p - end| is z standard errors under end itself
            distance = abs(right / n - end) / sqrt(end * (1 - end) / n)
            assert distance == pytest.approx(1.959963984540054, rel=1e-6)


def test_no_trial_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("b", "c"),
    # the last four are direct against zero-shot chain of thought in published logs: SVAMP, AddSub,
    # CommonsenseQA, AQuA
    [(0, 0), (3, 0), (1, 5), (4, 4), (6, 7), (149, 182), (61, 51), (185, 134), (22, 50)],
)
def test_mcnemar_counts_splits_as_uneven(b: int, c: int) -> None:
    n = b + c
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(b - c)]
    exact = Fraction(sum(comb(n, k) for k in uneven), 2**n)
    assert mcnemar(b, c) == pytest.approx(float(exact), rel=1e-12)


def test_mcnemar_over_all_outcomes_of_a_coin() -> None:
    flips = list(product((0, 1), repeat=10))
    extreme = sum(sum(f) <= 2 or sum(f) >= 8 for f in flips)
    assert mcnemar(2, 8) == extreme / len(flips)


def test_mcnemar_does_not_underflow() -> None:
    assert 0 < mcnemar(76, 1040) < 1e-200


def test_the_bootstrap_interval_is_that_of_resampled_pairs() -> None:
    rng = np.random.default_rng(5)
    first = rng.integers(0, 2, size=300).astype(float)
    second = np.where(rng.random(300) < 0.15, 1.0, first)
    low, high = bootstrap_difference(first.tolist(), second.tolist(), draws=4000)
    pairs = second - first
    means = [pairs[rng.integers(0, 300, size=300)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.006)
    assert low > 0


def test_pairs_that_agree_have_no_spread() -> None:
    assert bootstrap_difference([1, 0, 1], [1, 0, 1]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="3 and 2 questions"):
        bootstrap_difference([1, 0, 1], [1, 0])


def test_majority_takes_the_first_of_equals() -> None:
    assert majority(["b", "a", "a", "b"]) == ("b", 0.5)
    assert majority([]) == ("", 0.0)


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # leaving one of ten out: m of ten lose a match, so min(m/3, 1) is averaged with min((m-1)/3, 1)
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_over_ten_people(matches: int, accuracy: float) -> None:
    people = ["dog"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("A dog.", people) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "same_as"),
    [
        ("Yes.", "yes"),
        ("The two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("a.m.", "am"),
        ("t-shirt", "t shirt"),
        ("red,\nblue", "red blue"),
        ("what?", "what"),
    ],
)
def test_answers_are_made_alike_as_officially(answer: str, same_as: str) -> None:
    assert vqa_normalize(answer) == same_as


def slow_distance(a: str, b: str) -> int:
    """Levenshtein by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_distance(a[1:], b) + 1,
        slow_distance(a, b[1:]) + 1,
        slow_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_its_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == slow_distance(a, b)


def test_character_errors_are_taken_over_all_characters() -> None:
    assert character_error_rate(["", "longer"], ["ab", "long"]) == 4 / 6
    assert character_error_rate([], []) == 0.0
