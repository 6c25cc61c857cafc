"""Scores by their definitions, AUROC and FPR as scikit-learn has them, intervals that hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import erf

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.auditing.measures.outside import (
    at_threshold,
    auroc,
    detect_outside,
    detection,
    energy,
    keep_threshold,
    max_logit,
    max_softmax,
    mcm,
)
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson


def two(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 137), rng.normal(0, 1, 91)
    if ties:
        inside, outside = inside.round(), outside.round()
    return torch.from_numpy(inside), torch.from_numpy(outside)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_as_scikit_learn_has_them(seed: int, ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = two(seed, ties)
    truth = [1] * len(inside) + [0] * len(outside)
    scores = torch.cat([inside, outside]).numpy()
    assert auroc(inside, outside) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    found = detection("it", inside, outside).at_95
    fpr, tpr, thresholds = metrics.roc_curve(truth, scores, drop_intermediate=False)
    first = int((tpr >= 0.95).argmax())
    assert found.kept_outside == pytest.approx(fpr[first])
    assert found.kept_inside == pytest.approx(tpr[first])
    assert found.threshold == pytest.approx(thresholds[first])


def test_scores_by_their_definitions() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    exps = np.exp(logits.double().numpy())
    assert max_softmax(logits).tolist() == pytest.approx((exps.max(1) / exps.sum(1)).tolist())
    assert max_logit(logits).tolist() == [3, 0]
    assert energy(logits).tolist() == pytest.approx(np.log(exps.sum(1)).tolist())
    halves = np.exp(logits.double().numpy() / 2).sum(1)
    assert energy(logits, temperature=2).tolist() == pytest.approx((2 * np.log(halves)).tolist())


def test_mcm_is_the_softmax_of_similarities_whatever_the_models_temperature() -> None:
    torch.manual_seed(0)
    similarities = torch.rand(4, 5, dtype=torch.float64)
    expected = similarities.softmax(dim=1).amax(dim=1)
    for scale, bias in ((100.0, 0.0), (14.3, 0.0), (10.0, -10.0)):
        torch.testing.assert_close(mcm(scale * similarities + bias, scale), expected)
    hot = (similarities / 0.1).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(mcm(100 * similarities, 100.0, temperature=0.1), hot)
    with pytest.raises(InputError, match="expected numbers above 0"):
        mcm(similarities, 0.0)


def test_at_a_threshold() -> None:
    inside, outside = torch.arange(1.0, 11.0), torch.arange(-4.0, 6.0)
    assert keep_threshold(inside, 0.9) == 2  # 9 of 10 are at least 2
    assert keep_threshold(inside, 0.91) == 1
    assert keep_threshold(inside, 1.0) == 1
    assert keep_threshold(torch.arange(100.0), 0.55) == 45  # though 0.55 * 100 is above 55
    found = at_threshold(inside, outside, 2)
    assert (found.kept_inside, found.kept_outside) == (0.9, 0.4)
    assert found.kept_inside_interval == wilson(9, 10)
    assert found.kept_outside_interval == wilson(4, 10)


def test_the_interval_holds_the_true_area() -> None:
    true = 0.5 * (1 + erf(1 / np.sqrt(2) / np.sqrt(2)))  # two normals a deviation apart
    held, sizes = 0, []
    for seed in range(60):
        found = detection("it", *two(seed, False), draws=300, seed=seed)
        low, high = found.auroc_interval
        assert low <= found.auroc <= high
        held += low <= true <= high
        sizes.append(high - low)
    assert 50 <= held <= 60  # 57 expected, 1.7 one deviation
    assert np.mean(sizes) < 0.2
    tied = detection("it", torch.zeros(9), torch.zeros(7), draws=50)
    assert (tied.auroc, tied.auroc_interval) == (0.5, (0.5, 0.5))
    inside, outside = two(0, True)
    assert detection("it", inside, outside) == detection("it", inside, outside)


def test_all_scores_find_what_is_planted() -> None:
    torch.manual_seed(0)
    sure = torch.randn(200, 4) + 8 * torch.eye(4)[torch.arange(200) % 4]
    unsure = torch.randn(150, 4)
    found = detect_outside(sure, unsure, scale=10.0, draws=50)
    assert [d.score for d in found] == ["max softmax", "max logit", "energy", "mcm"]
    for one in found:
        assert (one.n_inside, one.n_outside) == (200, 150)
        assert one.auroc > 0.97
        assert one.at_95.kept_outside < 0.2
        json.dumps(asdict(one), allow_nan=False)
    assert [d.score for d in detect_outside(sure, unsure, draws=5)][-1] == "energy"
    same = detect_outside(unsure, unsure, draws=5)
    assert [d.auroc for d in same] == [0.5] * 3


def test_bad_input_is_refused() -> None:
    some = torch.ones(2)
    with pytest.raises(InputError, match="got outside scores of shape"):
        auroc(some, torch.ones(0))
    with pytest.raises(InputError, match="an inside score is not finite"):
        auroc(torch.tensor([float("nan")]), some)
    with pytest.raises(InputError, match="the same C classes"):
        detect_outside(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InputError, match="the share to keep is 0"):
        keep_threshold(some, 0)
