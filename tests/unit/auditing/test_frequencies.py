from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from isthmus.auditing.measures.frequencies import caption_frequencies, frequency_correlation
from isthmus.errors import InputError


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_the_correlation_is_scipys(rows: list[tuple[int, int]]) -> None:
    counts, recalls = zip(*rows, strict=True)
    found = frequency_correlation(counts, [r / 5 for r in recalls], permutations=10)
    if len(set(counts)) == 1 or len(set(recalls)) == 1:
        assert (found.rho, found.p) == (None, None)
        assert "no correlation is defined" in found.note
    else:
        assert found.rho == pytest.approx(spearmanr(counts, recalls).statistic)
        # The logarithm changes no rank
        logs = np.log1p(np.array(counts)).tolist()
        again = frequency_correlation(logs, [r / 5 for r in recalls], permutations=10)
        assert again.rho == pytest.approx(found.rho)


def test_the_p_value_is_the_exact_one() -> None:
    counts, recalls = [1, 10, 100, 1000, 5000], [0.1, 0.3, 0.2, 0.9, 0.7]
    rho = spearmanr(counts, recalls).statistic
    every = [abs(spearmanr(counts, order).statistic) for order in permutations(recalls)]
    found = frequency_correlation(counts, recalls, permutations=20_000)
    assert found.rho == pytest.approx(0.8)
    assert found.p == pytest.approx(np.mean(np.array(every) >= rho - 1e-9), abs=0.01)
    assert found == frequency_correlation(counts, recalls, permutations=20_000)


def test_p_values_are_uniform_where_nothing_is_planted() -> None:
    rng = np.random.default_rng(0)
    ps = [
        frequency_correlation(
            rng.integers(1, 10_000, 30).tolist(), rng.random(30).tolist(), permutations=399, seed=i
        ).p
        for i in range(300)
    ]
    assert kstest(ps, "uniform").pvalue > 0.01


def test_classes_without_a_recall_are_left_out() -> None:
    found = frequency_correlation([5, 1, 2, 3], [None, 0.1, 0.2, 0.3])
    assert (found.classes, found.rho) == (3, 1.0)
    assert frequency_correlation([5, 1], [0.2, 0.1]).rho is None
    with pytest.raises(InputError, match="1 frequencies and 2 recalls"):
        frequency_correlation([1], [0.1, 0.2])
    with pytest.raises(InputError, match="below 0"):
        frequency_correlation([1, -1, 2], [0.1, 0.2, 0.3])


def test_captions_name_labels_in_whole_words() -> None:
    captions = [
        "A CAT and another cat.",  # once
        "The cat's concatenated",
        "a golden-retriever, golden",
        "Golden  Retriever",
        "retriever golden",
        "Straße caf\u0065\u0301",
        "고양이 사진",
        "cats",
        "a golden golden retriever",
    ]
    labels = [
        "cat",
        "golden retriever",
        "STRASSE",
        "caf\u00e9",
        "고양이",
        "retriever",
        "dog",
        "cats",
    ]
    assert caption_frequencies(iter(captions), labels) == {
        "cat": 2,
        "golden retriever": 3,
        "STRASSE": 1,
        "caf\u00e9": 1,
        "고양이": 1,
        "retriever": 4,
        "dog": 0,
        "cats": 1,
    }
    assert caption_frequencies([], ["cat"]) == {"cat": 0}
    with pytest.raises(InputError, match='"!" has no word'):
        caption_frequencies(captions, ["cat", "!"])
