"""Reliability, calibration on one part measured on another, and bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.auditing.measures.confidence import (
    calibration_study,
    confidence_and_right,
    reliability,
)
from isthmus.classification.scaling import expected_calibration_error, measure
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

Draw = Callable[..., tuple[Tensor, Tensor]]


def test_a_perfectly_calibrated_toy(draw: Draw) -> None:
    logits, targets = draw(20_000)
    study = calibration_study((logits[::2], targets[::2]), (logits[1::2], targets[1::2]))
    assert study.before.ece < 0.02  # of 10,000 images some 0.01 is noise
    assert study.before.ece < 1.5 * study.before.ece_if_calibrated
    assert study.before.ece_p > 0.01
    temperature, vector = study.scaled
    assert temperature.temperature == pytest.approx(1, abs=0.05)
    assert vector.scale == pytest.approx([1] * 6, abs=0.1)
    for scaled in study.scaled:
        assert scaled.after is not None
        assert scaled.after.ece < 0.02


def test_a_planted_temperature_is_undone(draw: Draw) -> None:
    logits, targets = draw(8000)
    over = 3 * logits
    study = calibration_study((over[::2], targets[::2]), (over[1::2], targets[1::2]))
    assert study.n_fitted == 4000
    assert study.before.ece > 0.1
    assert study.before.ece_p == pytest.approx(1 / 1001)
    assert study.before.confidence > study.before.accuracy + 0.1
    temperature = study.scaled[0]
    assert temperature.temperature == pytest.approx(3, abs=0.15)
    assert temperature.after is not None
    assert temperature.after.ece < 0.03
    assert temperature.after.accuracy == study.before.accuracy
    # what is fitted on one part must not look at the other
    other = calibration_study((over[::2], targets[::2]), (over[1::2], targets[1::2].flip(0)))
    assert other.scaled[0].temperature == temperature.temperature


def test_a_planted_bias_needs_vector_scaling(draw: Draw) -> None:
    logits, targets = draw(8000, classes=3)
    shifted = logits + torch.tensor([2.0, 0.0, -2.0])
    study = calibration_study((shifted[::2], targets[::2]), (shifted[1::2], targets[1::2]))
    one, each = (s.after for s in study.scaled)
    assert one is not None
    assert each is not None
    assert each.nll < one.nll - 0.1
    assert each.accuracy > one.accuracy + 0.05


def test_the_diagram_is_that_of_the_error(draw: Draw) -> None:
    logits, targets = draw(500)
    found = reliability(logits, targets, bins=10)
    told = measure(logits, targets)
    assert (found.brier, found.nll, found.accuracy) == (told.brier, told.nll, told.accuracy)
    full = [b for b in found.bins if b.confidence is not None and b.accuracy is not None]
    gaps = sum(b.n * abs(b.accuracy - b.confidence) for b in full) / 500  # type: ignore[operator]
    confidence, right = confidence_and_right(logits, targets)
    assert gaps == pytest.approx(expected_calibration_error(confidence, right, 10), abs=1e-12)
    assert sum(b.n for b in found.bins) == 500
    for b in full:
        assert b.low < b.confidence <= b.high  # type: ignore[operator]
        assert b.interval == wilson(round(b.accuracy * b.n), b.n)  # type: ignore[operator]
    empty = next(b for b in found.bins if not b.n)  # six classes: none is likeliest below 1/6
    assert (empty.confidence, empty.accuracy, empty.interval) == (None, None, None)
    json.dumps(asdict(found), allow_nan=False)


def test_a_perfectly_calibrated_toy_is_rarely_accused(draw: Draw) -> None:
    found = [reliability(*draw(300, seed=seed), draws=199, seed=seed) for seed in range(60)]
    p = np.array([f.ece_p for f in found])
    for level in (0.1, 0.5):  # uniform p values, within four deviations of a binomial share
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 60)
    mean = np.mean([f.ece for f in found])
    assert np.mean([f.ece_if_calibrated for f in found]) == pytest.approx(mean, rel=0.1)


def test_the_interval_holds_a_planted_error() -> None:
    # One confidence, 0.8, right with probability 0.6: the true error is 0.2
    logits = torch.tensor([[np.log(4), 0.0]]).repeat(400, 1)
    held = 0
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        targets = (torch.rand(400, generator=rng) > 0.6).long()
        low, high = reliability(logits, targets, draws=300, seed=seed).ece_interval
        held += low <= 0.2 <= high
    assert 50 <= held <= 60  # 57 expected, 1.7 one deviation
    assert reliability(logits, targets, seed=1) == reliability(logits, targets, seed=1)


def test_the_interval_holds_an_error_that_sampling_makes_larger(draw: Draw) -> None:
    true = measure(*_overconfident(draw, 200_000, seed=999)).ece
    held = 0
    for seed in range(60):
        low, high = reliability(*_overconfident(draw, 300, seed), draws=200, seed=seed).ece_interval
        held += low <= true <= high
    assert held >= 44  # percentiles as they are hold it 32 times


def _overconfident(draw: Draw, n: int, seed: int) -> tuple[Tensor, Tensor]:
    logits, targets = draw(n, seed=seed)
    return 1.3 * logits, targets


def test_what_cannot_be_fitted_is_told_and_the_rest_goes_on() -> None:
    logits, targets = torch.eye(3).repeat(5, 1), torch.arange(15) % 3
    study = calibration_study((logits, targets), (logits, targets))
    for scaled in study.scaled:  # all are right, so no finite temperature fits
        assert scaled.after is None
        assert "all 15 images are classified correctly" in scaled.note
    hard = torch.tensor([0, 1, 1] * 5)  # no image of class 2
    one, each = calibration_study((logits, hard), (logits, targets)).scaled
    assert one.after is not None
    assert one.note == ""
    assert each.after is None
    assert "have no image" in each.note


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at least one image"):
        reliability(torch.zeros(0, 2), torch.zeros(0).long())
    with pytest.raises(InputError, match=r"expected \(n, C\) and \(n,\)"):
        reliability(torch.zeros(3, 2), torch.zeros(2).long())
    with pytest.raises(InputError, match="not finite"):
        reliability(torch.full((1, 2), float("nan")), torch.zeros(1).long())
