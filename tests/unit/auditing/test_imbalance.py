from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from isthmus.auditing.measures.imbalance import (
    ImbalanceArm,
    ImbalanceStudy,
    adjusted_logits,
    imbalance_study,
    long_tailed_counts,
)
from isthmus.classification.few_shot import linear_probe
from isthmus.errors import InputError


def gaussians(counts: Any, seed: int = 0, *, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Classes on a circle of radius 2, each a Gaussian of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.as_tensor(counts))
    noise = torch.randn(len(targets), 2, generator=generator)
    return centres(len(counts))[targets] + spread * noise, targets


def centres(classes: int) -> Tensor:
    angle = 2 * torch.pi * torch.arange(classes) / classes
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)


def test_the_exponential_profile() -> None:
    # CIFAR-10-LT at ratio 100, in the literature rounded down
    published = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert long_tailed_counts(5000, 10, 100) == pytest.approx(published, abs=1)
    assert long_tailed_counts(1000, 4, 1000) == (1000, 100, 10, 1)
    assert long_tailed_counts(20, 5, 1) == (20,) * 5
    assert long_tailed_counts(20, 3, 100) == (20, 2, 1)  # never none
    for bad in ((0, 3, 2), (5, 1, 2), (5, 3, 0.5)):
        with pytest.raises(InputError, match="expected at least 1, 2 and 1"):
            long_tailed_counts(*bad)


@pytest.mark.parametrize("weight", [None, "balanced"])
def test_the_head_is_scikit_learns(weight: str | None) -> None:
    features, targets = gaussians([60, 20, 10])
    counts = targets.bincount()
    weights = None if weight is None else len(targets) / (3 * counts)
    found = linear_probe(
        features.double(),
        targets,
        3,
        class_weights=None if weights is None else weights.double(),
        penalty=0.01,
    )
    theirs = LogisticRegression(
        C=1 / (0.01 * len(targets)), class_weight=weight, tol=1e-10, max_iter=5000
    )
    theirs.fit(features.double().numpy(), targets.numpy())
    ours = found(features.double()).softmax(dim=-1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(features.double().numpy()), atol=1e-4)


def test_adjusted_logits_are_bayes_rule() -> None:
    """Posteriors of Gaussians with known priors: what is left is the nearest centre."""
    points, _ = gaussians([300] * 5, seed=1, spread=2.0)
    distance = torch.cdist(points.double(), centres(5).double())
    priors = torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03]).double()
    posterior = priors.log() - distance.square() / 2
    nearest = distance.argmin(dim=-1)
    assert (adjusted_logits(posterior, priors).argmax(dim=-1) == nearest).all()
    assert (posterior.argmax(dim=-1) != nearest).double().mean() > 0.15
    # Half of tau is half of the way
    half = adjusted_logits(posterior, priors, tau=0.5).argmax(dim=-1)
    assert (half == (priors.log() / 2 - distance.square() / 2).argmax(dim=-1)).all()
    with pytest.raises(InputError, match="expected each above 0"):
        adjusted_logits(posterior, torch.tensor([1.0, 0, 0, 0, 0]))


def test_adjusting_a_trained_head_recovers_bayes_rule() -> None:
    counts = torch.tensor([4000, 1200, 400])
    features, targets = gaussians(counts)
    head = linear_probe(features, targets, 3, penalty=0.0)
    points, _ = gaussians([1000] * 3, seed=1)
    logits = head(points)
    nearest = torch.cdist(points, centres(3)).argmin(dim=-1)
    adjusted = adjusted_logits(logits, counts / counts.sum()).argmax(dim=-1)
    assert (adjusted == nearest).double().mean() > 0.98
    assert (logits.argmax(dim=-1) == nearest).double().mean() < 0.93


@pytest.fixture(scope="module")
def study() -> ImbalanceStudy:
    train, test = gaussians([100] * 6, spread=0.8), gaussians([200] * 6, seed=1, spread=0.8)
    return imbalance_study(*train, *test)


def arms(study: ImbalanceStudy) -> dict[tuple[float, str], ImbalanceArm]:
    return {(arm.ratio, arm.method): arm for arm in study.arms}


def test_the_tail_falls_and_remedies_lift_it(study: ImbalanceStudy) -> None:
    found = arms(study)
    tails = [found[ratio, "plain"].tail or 0 for ratio in (1, 10, 50, 100)]
    assert tails == sorted(tails, reverse=True)
    assert tails[0] - tails[-1] > 0.2
    assert found[100, "plain"].fall == pytest.approx(tails[-1] - tails[0])
    assert (found[100, "plain"].head or 0) > tails[-1] + 0.2
    for method in ("weighted", "adjusted", "fewer"):
        arm, plain = found[100, method], found[100, "plain"]
        assert arm.gain == pytest.approx(arm.balanced_accuracy - plain.balanced_accuracy)
        assert arm.tail_gain == pytest.approx((arm.tail or 0) - (plain.tail or 0))
        assert arm.tail_gain > 0.1, method
        assert arm.gain > 0.03, method
    # Gaussians need few images: what is lost is lost by imbalance, not by their number
    assert abs(found[100, "fewer"].balanced_accuracy - found[1, "plain"].balanced_accuracy) < 0.03
    json.dumps(asdict(study), allow_nan=False)


def test_images_are_counted(study: ImbalanceStudy) -> None:
    found = arms(study)
    assert (study.largest, study.classes, study.test_images) == (100, 6, 1200)
    counts = long_tailed_counts(100, 6, 100)
    assert (found[100, "plain"].images, found[100, "plain"].smallest) == (sum(counts), 1)
    assert (found[100, "fewer"].images, found[100, "fewer"].smallest) == (
        sum(counts),
        sum(counts) // 6,
    )
    for arm in study.arms[:4]:  # ratio 1: nothing to remedy
        assert (arm.ratio, arm.images, arm.gain, arm.fall) == (1, 600, 0.0, 0.0)
        parts = [arm.head, arm.medium, arm.tail]
        assert np.mean(parts) == pytest.approx(arm.balanced_accuracy)  # type: ignore[arg-type]


def test_without_a_penalty_on_noise_free_data_only_the_order_decides() -> None:
    """A class that cannot be learned drags down the third that the seed puts it in."""
    features, targets = gaussians([30] * 6, spread=0.05)
    noise = torch.Generator().manual_seed(0)
    blind = targets == 2
    test = features.clone()
    test[blind] = -centres(6)[2] * 5 + torch.randn(30, 2, generator=noise) * 0.01
    for seed in range(4):
        place = np.random.default_rng(seed).permutation(6).tolist().index(2) // 2
        arm = imbalance_study(features, targets, test, targets, ratios=(1,), seeds=(seed,)).arms[0]
        recalls = [arm.head, arm.medium, arm.tail]
        assert recalls == [0.5 if i == place else 1.0 for i in range(3)]
        assert arm.sd is None


def test_same_seeds_same_study() -> None:
    train, test = gaussians([20] * 3), gaussians([30] * 3, seed=1)
    first, again = (imbalance_study(*train, *test, ratios=(1, 10)) for _ in range(2))
    assert first == again
    one, two = (imbalance_study(*train, *test, ratios=(10,), seeds=(s,)) for s in (0, 1))
    assert one.arms != two.arms


def test_classes_without_test_images_and_short_heads_are_said() -> None:
    train, test = gaussians([20] * 3), gaussians([30, 30, 0], seed=1)
    found = imbalance_study(*train, *test, ratios=(1, 100), seeds=(0,))
    assert "the true ratio is 20" in found.note
    assert "1 of 3 classes have no test image" in found.note
    assert [found.arms[0].head, found.arms[0].medium, found.arms[0].tail].count(None) == 1
    json.dumps(asdict(found), allow_nan=False)


def test_what_cannot_be_studied_is_said() -> None:
    features, targets = gaussians([5] * 3)
    with pytest.raises(InputError, match="2 of 2 classes: expected at least three"):
        imbalance_study(features[:10], targets[:10], features, targets)
    with pytest.raises(InputError, match="2 of 3 classes"):
        imbalance_study(features[5:], targets[5:], features, targets)
    with pytest.raises(InputError, match="test class 3 has no training image"):
        imbalance_study(features, targets, features, targets + 1)
    with pytest.raises(InputError, match="expected one target for each"):
        imbalance_study(features, targets[:9], features, targets)
    with pytest.raises(InputError, match="no ratio or no seed"):
        imbalance_study(features, targets, features, targets, seeds=())
