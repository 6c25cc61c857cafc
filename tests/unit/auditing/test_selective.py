"""Risk and coverage by hand, against all orders of ties, and at the best ordering."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from isthmus.auditing.measures.selective import risks, selective
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson


def test_by_hand() -> None:
    # right, right, wrong, right, wrong: risks 0, 0, 1/3, 1/4, 2/5
    confidence = torch.tensor([0.6, 0.9, 0.8, 0.5, 0.7])
    right = torch.tensor([True, True, True, False, False])
    found = selective(confidence, right, coverages=(1.0, 0.6, 0.4), accuracies=(0.7, 0.9, 0.2))
    assert found.risk == pytest.approx((0, 0, 1 / 3, 1 / 4, 2 / 5))
    assert found.coverage == pytest.approx((0.2, 0.4, 0.6, 0.8, 1.0))
    assert found.aurc == pytest.approx((1 / 3 + 1 / 4 + 2 / 5) / 5)
    best = (0 + 0 + 0 + 1 / 4 + 2 / 5) / 5
    assert found.e_aurc == pytest.approx(found.aurc - best)
    assert [a.accuracy for a in found.at_coverage] == pytest.approx([0.6, 2 / 3, 1])
    assert [a.answered for a in found.at_coverage] == [5, 3, 2]
    assert found.at_coverage[1].interval == wilson(2, 3)
    half = selective(confidence, right, coverages=(0.5,)).at_coverage[0]
    assert (half.answered, half.accuracy) == (3, pytest.approx(2 / 3))  # half of 5, rounded up
    # 3 of 4 are right down to 0.6, though only 2 of 3 are down to 0.7
    assert [(a.coverage, a.threshold) for a in found.at_accuracy] == [
        (0.8, pytest.approx(0.6)),
        (0.4, pytest.approx(0.8)),
        (1.0, pytest.approx(0.5)),
    ]
    json.dumps(asdict(found), allow_nan=False)


def test_a_perfect_ordering_by_hand() -> None:
    # 3 right before 1 wrong: only the last risk is not 0, and it is 1/4
    found = selective(torch.tensor([0.2, 0.9, 0.4, 0.3]), torch.tensor([0, 1, 1, 1]).bool())
    assert found.aurc == pytest.approx(1 / 16)
    assert found.e_aurc == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_best_ordering_has_no_excess_and_others_have(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = torch.from_numpy(rng.random(200) < 0.7)
    best = right.double() + torch.from_numpy(rng.random(200)) / 2
    assert selective(best, right).e_aurc == pytest.approx(0, abs=1e-12)
    # close to the limit that Geifman et al. 2019 give, r + (1 - r) ln(1 - r)
    r = 1 - float(right.double().mean())
    assert selective(best, right).aurc == pytest.approx(r + (1 - r) * np.log(1 - r), abs=0.01)
    worst, chance = selective(-best, right), selective(torch.zeros(200), right)
    assert worst.e_aurc > chance.e_aurc > 0.1
    assert chance.aurc == pytest.approx(r)  # one tie: the risk is the same everywhere


def test_ties_are_the_mean_over_all_their_orders() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1])
    right = torch.tensor([True, True, False, False, True])
    curves = []
    for order in itertools.permutations((1, 2, 3)):
        wrong = (~right[[0, *order, 4]]).double()
        curves.append(wrong.cumsum(0) / torch.arange(1, 6))
    torch.testing.assert_close(risks(confidence, right), torch.stack(curves).mean(0))
    shuffled = torch.tensor([3, 4, 1, 0, 2])
    torch.testing.assert_close(
        risks(confidence[shuffled], right[shuffled]), risks(confidence, right)
    )


def test_no_threshold_divides_a_tie_and_none_is_none() -> None:
    confidence = torch.tensor([0.5, 0.5])
    found = selective(confidence, torch.tensor([True, False]), accuracies=(0.9, 0.5))
    assert [a.coverage for a in found.at_accuracy] == [None, 1.0]
    assert found.at_accuracy[0].threshold is None


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    right = torch.arange(5000) % 3 > 0
    found = selective(torch.linspace(1, 0, 5000), right)
    assert len(found.coverage) == len(found.risk) == 100
    assert found.coverage[-1] == 1
    assert found.risk[-1] == pytest.approx(1 - float(right.double().mean()))


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at least one image"):
        selective(torch.zeros(0), torch.zeros(0).bool())
    with pytest.raises(InputError, match="expected shares above 0"):
        selective(torch.zeros(2), torch.ones(2).bool(), coverages=(0.0,))
