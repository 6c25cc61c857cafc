"""A head tuned on adversarial images leaves a fragile feature for a robust one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.attacks.attackable import (
    accuracy,
    attackable_of,
    features_of,
    pixels_of,
    scores,
)
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.attacks.tuned_head import tune_head, with_head, zero_shot_head
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import InputError
from isthmus.model.clip.dual_encoder import DualEncoder

CHECKS = (torch.arange(8)[:, None] + torch.arange(8)[None]).remainder(2) * 2.0 - 1


def two_cues(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Brightness tells the class with noise; a faint chequered pattern tells it always."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(2, (n,), generator=draw)
    side = (targets * 2.0 - 1)[:, None, None, None]
    brightness = 0.1 * side + 0.08 * torch.randn(n, 1, 1, 1, generator=draw)
    pixels = 0.5 + brightness + 0.01 * side * CHECKS
    return pixels.expand(n, 3, 8, 8).clamp(0, 1).contiguous(), targets


def features(x: Tensor) -> Tensor:
    """Both cues: brightness, and the pattern on a scale on which it looks as large."""
    grey = x.mean(dim=1) - 0.5
    return torch.stack([grey.mean((1, 2)), 10 * (grey * CHECKS).mean((1, 2))], dim=1)


def test_tuning_trades_a_fragile_cue_for_a_robust_one() -> None:
    pixels, targets = two_cues(200, 0)
    held_pixels, held_targets = two_cues(100, 1)
    weight = torch.tensor([[0.0, -30.0], [0.0, 30.0]])  # reads the pattern alone
    told = {"held_pixels": held_pixels, "held_targets": held_targets, "eps": 0.03}
    made = tune_head(
        features, weight, torch.zeros(2), pixels, targets, epochs=10, learning_rate=0.1, **told  # type: ignore[arg-type]
    )  # fmt: skip
    assert made.before.clean == 1.0
    assert made.before.attacked == 0.0
    assert made.after.attacked > 0.6
    assert made.after.clean > 0.8
    assert made.after.n == 100
    # What is reported is what the head does
    head = with_head(features, made.weight, made.bias, (8, 8))
    assert accuracy(head, held_pixels, held_targets) == made.after.clean
    found = attack(head, held_pixels, held_targets, method="pgd", norm="linf", eps=0.03)
    assert accuracy(head, found, held_targets) == made.after.attacked
    torch.testing.assert_close(made(features(held_pixels)), scores(head, held_pixels))
    again = tune_head(
        features, weight, torch.zeros(2), pixels, targets, epochs=10, learning_rate=0.1, **told  # type: ignore[arg-type]
    )  # fmt: skip
    assert torch.equal(again.weight, made.weight)


def test_the_zero_shot_head_is_the_classifier() -> None:
    torch.manual_seed(0)
    model = DualEncoder.join("tiny-vit", "tiny-text", width=8, loss="sigmoid")
    classifier = ZeroShotClassifier(model, ["cat", "dog", "cow"], "one", cache=False)
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), np.uint8)
    photos = [Image.fromarray(each) for each in noise]
    pixels = pixels_of(classifier, photos)
    head = with_head(features_of(classifier), *zero_shot_head(classifier), model.image.image_size)
    expected = classifier.decision_function(photos)
    np.testing.assert_allclose(scores(head, pixels).numpy(), expected, atol=1e-4)
    assert head.has_gradient


def test_features_without_a_gradient_are_told() -> None:
    pixels, targets = two_cues(8, 0)
    start = torch.eye(2), torch.zeros(2)
    held = {"held_pixels": pixels, "held_targets": targets}
    with pytest.raises(InputError, match="needs a gradient"):
        tune_head(lambda x: features(x).detach(), *start, pixels, targets, eps=0.1, **held)
    with pytest.raises(InputError, match="more than 0 of each"):
        tune_head(features, *start, pixels, targets, eps=0.0, **held)
    assert attackable_of(features, (8, 8)).has_gradient
