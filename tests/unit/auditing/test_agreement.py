"""Flips and kappa against published tables, closed forms and a second way to compute them."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isthmus.auditing.measures.agreement import (
    agreement,
    agreement_by_kind,
    category_counts,
    fleiss_kappa,
    kappa_interval,
)
from isthmus.errors import InputError

# The worked example of textbooks: 10 subjects, 14 raters, 5 classes; kappa is 0.210
TEXTBOOK = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# Fleiss 1971, table 1: 30 patients, each by 6 psychiatrists, 5 diagnoses; kappa is 0.430
FLEISS_1971 = """
    444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333
    144444 224445 333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224
    111155 224444 133333 555555
"""


def drawn(wordings: int, n: int, classes: int, noise: float, seed: int = 0) -> NDArray[np.int64]:
    """Predictions that are the first row's, but for a share of noise."""
    random = np.random.default_rng(seed)
    rows = np.repeat(random.integers(classes, size=(1, n)), wordings, axis=0)
    flips = random.random((wordings, n)) < noise
    flips[0] = False
    return np.where(flips, random.integers(classes, size=rows.shape), rows)


def test_published_tables() -> None:
    assert round(fleiss_kappa(TEXTBOOK) or 0, 3) == 0.210
    ratings = np.array([[int(digit) for digit in row] for row in FLEISS_1971.split()]).T
    found = agreement(ratings)
    assert round(found.kappa or 0, 3) == 0.430
    assert (found.wordings, found.n) == (6, 30)


def test_kappa_as_pairs_of_raters() -> None:
    """Observed agreement as the share of equal pairs, chance as that of pairs with replacement."""
    rows = drawn(5, 60, 4, 0.4)
    observed = np.mean([(a == b).mean() for a, b in combinations(rows, 2)])
    shares = np.bincount(rows.ravel()) / rows.size
    expected = (observed - (shares**2).sum()) / (1 - (shares**2).sum())
    assert fleiss_kappa(category_counts(rows)) == pytest.approx(expected, abs=1e-12)


def test_a_prompt_invariant_model_has_no_flips_and_kappa_1() -> None:
    found = agreement(drawn(6, 40, 3, noise=0.0), draws=200)
    assert (found.flip_rate, found.flipped_any, found.kappa) == (0.0, 0.0, 1.0)
    assert found.kappa_interval == (1.0, 1.0)
    assert found.flip_interval == (0.0, 0.0)


def test_a_model_that_guesses_has_kappa_0() -> None:
    random = np.random.default_rng(0)
    found = agreement(random.integers(5, size=(8, 4000)), draws=200)
    assert found.kappa == pytest.approx(0, abs=0.01)
    assert found.kappa_interval is not None
    assert found.kappa_interval[0] < 0 < found.kappa_interval[1]
    assert found.flip_rate == pytest.approx(0.8, abs=0.01)
    assert found.flipped_any == pytest.approx(1 - 0.2**7, abs=0.01)


def test_flips_by_hand() -> None:
    rows = ["cat dog owl owl", "cat owl owl cat", "cat dog owl dog"]
    found = agreement([row.split() for row in rows], ["cat", "dog", "owl", "dog"])
    assert found.flip_rate == (2 + 1) / 8  # two, then one of four images differ from the first
    assert found.flipped_any == 2 / 4
    assert found.flipped_any_interval == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert found.accuracy == (0.75, 0.5, 1.0)
    assert (found.accuracy_lowest, found.accuracy_highest) == (0.5, 1.0)
    assert found.note == ""


def test_only_the_first_row_counts_for_flips_and_none_for_kappa() -> None:
    rows = drawn(4, 50, 3, 0.3)
    swapped = agreement(rows[[0, 3, 1, 2]])
    first = agreement(rows)
    assert first.flip_rate == swapped.flip_rate
    moved = agreement(rows[[1, 0, 2, 3]])
    assert moved.flip_rate != first.flip_rate
    assert moved.kappa == first.kappa
    assert agreement(torch.from_numpy(rows)) == first
    assert agreement(7 - rows) == first  # names of classes are no matter


def test_the_interval_covers() -> None:
    """Of 120 samples of one population, about 95 % of the intervals hold its kappa."""
    truth = fleiss_kappa(category_counts(drawn(5, 200_000, 4, 0.4)))
    held = 0
    for seed in range(120):
        ends = kappa_interval(category_counts(drawn(5, 80, 4, 0.4, seed + 1)), draws=400, seed=seed)
        assert truth is not None
        assert ends is not None
        held += ends[0] <= truth <= ends[1]
    assert 0.88 <= held / 120 <= 0.99


def test_the_interval_does_not_depend_on_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = category_counts(drawn(4, 30, 3, 0.3))
    whole = kappa_interval(counts, draws=101, seed=7)
    assert whole == kappa_interval(counts, draws=101, seed=7)
    assert whole != kappa_interval(counts, draws=101, seed=8)
    monkeypatch.setattr("isthmus.auditing.measures.agreement._CELLS", 90)
    assert kappa_interval(counts, draws=101, seed=7) == pytest.approx(whole)


def test_what_has_no_value_is_none_with_a_reason() -> None:
    constant = agreement(np.zeros((3, 9), dtype=int))
    assert (constant.flip_rate, constant.kappa, constant.kappa_interval) == (0.0, None, None)
    assert "same class" in constant.note
    assert "no targets" in constant.note
    one_image = agreement([[0], [1]], [0])
    assert one_image.kappa == -1.0
    assert one_image.kappa_interval is None
    assert "at least two images" in one_image.note
    rare = agreement([[0] * 9 + [1], [0] * 10], draws=300)  # a third of resamples are constant
    assert rare.kappa_interval is not None
    for found in (constant, one_image, rare):
        json.dumps(asdict(found), allow_nan=False)


def test_kinds_are_each_compared_with_the_first() -> None:
    rows = drawn(5, 30, 3, 0.3)
    found = agreement_by_kind(rows, ["typo", "case", "typo", "case"], rows[0])
    assert list(found) == ["typo", "case"]
    assert found["typo"] == agreement(rows[[0, 1, 3]], rows[0])
    assert found["case"] == agreement(rows[[0, 2, 4]], rows[0])


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least two wordings"):
        agreement([[0, 1]])
    with pytest.raises(InputError, match=r"targets of shape \(1,\): expected \(2,\)"):
        agreement([[0, 1], [0, 1]], [0])
    with pytest.raises(InputError, match="2 kinds for 2 wordings: expected 1"):
        agreement_by_kind([[0, 1], [0, 1]], ["typo", "case"])
    with pytest.raises(InputError, match="3 to 4 ratings"):
        fleiss_kappa([[3, 0], [2, 2]])
