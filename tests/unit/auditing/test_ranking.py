from __future__ import annotations

from collections import Counter
from math import log, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, kstest

from isthmus.auditing.measures.ranking import max_skew, ndkl, ranking_skew, skews
from isthmus.errors import InputError

RANKED = ["a", "b", "a", "a"]
EVEN = {"a": 0.5, "b": 0.5}
rankings = st.lists(st.sampled_from("abc"), min_size=1, max_size=25)


def test_a_ranking_by_hand() -> None:
    assert skews(RANKED, 4, EVEN) == pytest.approx({"a": log(0.75 / 0.5), "b": log(0.25 / 0.5)})
    assert max_skew(RANKED, 4, EVEN) == pytest.approx(log(1.5))
    assert max_skew(RANKED, 2, EVEN) == 0.0
    assert skews(RANKED, 1, EVEN) == {"a": pytest.approx(log(2)), "b": None}
    # Divergences after 1, 2, 3 and 4 results, with weights 1, 0.6309, 0.5 and 0.4307
    divergences = [0.693147, 0.0, 0.056633, 0.130812]
    assert ndkl(RANKED, EVEN) == pytest.approx(0.303638, abs=1e-6)
    weights = [1 / log2(i + 1) for i in range(1, 5)]
    by_hand = sum(w * d for w, d in zip(weights, divergences, strict=True)) / sum(weights)
    assert by_hand == pytest.approx(0.303638, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(rankings)
def test_ndkl_is_its_definition(ranked: list[str]) -> None:
    shares = {"a": 0.2, "b": 0.5, "c": 0.3}
    total = weights = 0.0
    for i in range(1, len(ranked) + 1):
        found = [Counter(ranked[:i])[g] / i for g in shares]
        total += entropy(found, list(shares.values())) / log2(i + 1)
        weights += 1 / log2(i + 1)
    assert ndkl(ranked, shares) == pytest.approx(total / weights, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(rankings, st.data())
def test_skews_of_the_own_shares(ranked: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(ranked)))
    assert max_skew(ranked, k) >= -1e-12
    assert max_skew(ranked, len(ranked)) == pytest.approx(0, abs=1e-12)
    renamed = {"a": "z", "b": "y", "c": "x"}
    assert max_skew([renamed[g] for g in ranked], k) == pytest.approx(max_skew(ranked, k))
    assert ndkl([renamed[g] for g in ranked]) == pytest.approx(ndkl(ranked))


def test_a_random_order_is_as_skewed_as_chance() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        ranked = rng.choice(["a", "b", "c"], 40, p=[0.2, 0.3, 0.5]).tolist()
        found.append(ranking_skew(ranked, 10, permutations=199, seed=seed))
    assert kstest([f.p for f in found], "uniform").pvalue > 0.01
    for name in ("ndkl", "max_skew"):
        observed, chance = (
            np.mean([getattr(f, n) for f in found]) for n in (name, f"{name}_by_chance")
        )
        assert observed == pytest.approx(chance, rel=0.1), name


def test_a_sorted_order_is_not() -> None:
    ranked = ["a"] * 10 + ["b"] * 30
    found = ranking_skew(ranked, 10)
    assert found.p == 1 / 501
    assert (found.most, found.max_skew) == ("a", pytest.approx(log(4)))
    assert found.max_skew_by_chance < 0.6
    assert found == ranking_skew(ranked, 10)


def test_shares_that_are_none_are_said() -> None:
    with pytest.raises(InputError, match="k is 5: expected 1 to 4"):
        max_skew(RANKED, 5, EVEN)
    with pytest.raises(InputError, match='no share is given for "b"'):
        ndkl(RANKED, {"a": 1.0})
    with pytest.raises(InputError, match="expected each above 0 and 1 in all"):
        ndkl(RANKED, {"a": 0.5, "b": 0.6})
    with pytest.raises(InputError, match="expected each above 0 and 1 in all"):
        ndkl(RANKED, {"a": 0.5, "b": 0.5, "c": 0.0})
    with pytest.raises(InputError, match="got no results"):
        ndkl([])
