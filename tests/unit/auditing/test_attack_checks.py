"""Checks of an attack: a model that hides its gradient is told, an honest one is trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.auditing.attacks.attack_checks import (
    AttackChecks,
    GradientHealth,
    attack_checks,
    gradient_health,
)
from isthmus.auditing.attacks.attackable import Attackable, accuracy, attackable_of, scores
from isthmus.auditing.attacks.attacking import attack, noise
from isthmus.errors import InputError

SIDE = 12
WEIGHT = torch.randn(3, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0))


def honest(x: Tensor) -> Tensor:
    return (x - 0.5).flatten(1) @ WEIGHT.T


def rounded(x: Tensor) -> Tensor:
    """The derivative of a rounding step is 0 wherever there is one."""
    return (4 * honest(x)).round() / 4


def saturated(x: Tensor) -> Tensor:
    """Through a step so steep that its derivative underflows; logits still order as before."""
    return torch.tanh(honest(x) * 1e6) + (1e-4 * honest(x)).detach()


def shattered(x: Tensor) -> Tensor:
    """A gradient that is large, and of noise."""
    fast = (x * 1e4).sin() * 1e-3
    return honest(x).detach() + fast.flatten(1) @ WEIGHT.flip(0).T


def measured(logits: Any, n: int = 60) -> AttackChecks:
    """All that the checks ask for, measured on a model."""
    subject: Attackable = attackable_of(logits, (SIDE, SIDE))
    pixels = 0.4 + 0.2 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    targets = scores(subject, pixels).argmax(dim=-1)

    def under(method: Any, eps: float, steps: int) -> float:
        told = {"norm": "linf", "eps": eps, "steps": steps}
        found = attack(subject, pixels, targets, method=method, **told)  # type: ignore[arg-type]
        return accuracy(subject, found, targets)

    eps = 0.015
    told = noise(pixels, "linf", eps, 0, 5, subject, targets)
    return attack_checks(
        n=n,
        clean=accuracy(subject, pixels, targets),
        by_eps={e: under("pgd", e, 10) for e in (0.005, 0.015, 0.03)},
        by_steps={s: under("pgd", eps, s) for s in (1, 5, 20)},
        large_eps=under("pgd", 0.5, 20),
        white_box=under("pgd", eps, 10),
        black_box=under("square", eps, 200),
        noise=accuracy(subject, told, targets),
        gradients=gradient_health(subject, pixels, targets),
    )


def failed(made: AttackChecks) -> set[str]:
    return {check.name for check in made.checks if not check.passed}


def test_an_honest_model_is_trusted() -> None:
    made = measured(honest)
    assert failed(made) == set(), made.reason
    assert made.trusted
    assert made.reason == ""
    assert len(made.checks) == 8


@pytest.mark.parametrize("logits", [rounded, saturated, shattered])
def test_a_model_that_masks_its_gradient_is_told(logits: Any) -> None:
    made = measured(logits)
    assert not made.trusted
    names = failed(made)
    assert {"white-box at most black-box", "a large eps breaks everything"} <= names
    assert ("gradients are not zero" in names) == (logits is not shattered)
    for name in names:
        assert name in made.reason


def test_the_gradient_is_looked_at_image_by_image() -> None:
    def half(x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3), keepdim=False)[:, None] > 0.5
        return torch.where(bright, honest(x), honest(x).detach())

    subject = attackable_of(half, (SIDE, SIDE))
    pixels = torch.full((4, 3, SIDE, SIDE), 0.4)
    pixels[:1] = 0.6
    pixels += torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) / 50
    found = gradient_health(subject, pixels, torch.tensor([0, 1, 2, 0]), batch_size=3)
    assert found == GradientHealth(zero=0.75, not_finite=0.0, n=4)
    left = attackable_of(
        lambda x: honest(x * (x.new_tensor([1, 0, 0]).view(3, 1, 1))), (SIDE, SIDE)
    )
    some = gradient_health(left, pixels, torch.tensor([0, 1, 2, 0]))
    assert some == GradientHealth(zero=0.0, not_finite=0.0, n=4)  # of one channel alone
    nan = attackable_of(lambda x: (x - x).sqrt().flatten(1) @ WEIGHT.T, (SIDE, SIDE))
    found = gradient_health(nan, pixels, torch.tensor([0, 1, 2, 0]))
    assert found is not None
    assert found.not_finite == 1.0
    blind = attackable_of(lambda x: honest(x).detach(), (SIDE, SIDE))
    assert gradient_health(blind, pixels, torch.tensor([0, 1, 2, 0])) is None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"by_eps": {0.02: 0.5, 0.01: 0.7}}, set()),
        ({"by_eps": {0.01: 0.5, 0.02: 0.7}}, {"accuracy falls with eps"}),
        ({"by_eps": {0.01: 0.95}}, {"accuracy falls with eps"}),  # above the clean accuracy
        ({"by_eps": {0.01: 0.5, 0.02: 0.515}}, set()),  # within the noise
        # creeping up is compared with the lowest, not with the one before
        ({"by_eps": {0.01: 0.5, 0.02: 0.515, 0.03: 0.53}}, {"accuracy falls with eps"}),
        ({"by_steps": {1: 0.4, 10: 0.5}}, {"accuracy falls with steps"}),
        ({"large_eps": 0.01}, set()),
        ({"large_eps": 0.05}, {"a large eps breaks everything"}),
        ({"white_box": 0.2, "black_box": 0.3, "noise": 0.8}, set()),
        ({"white_box": 0.4, "black_box": 0.3, "noise": 0.8}, {"white-box at most black-box"}),
        ({"black_box": 0.9, "noise": 0.8}, {"black-box at most random noise"}),
        ({"gradients": GradientHealth(0.06, 0, 100)}, {"gradients are not zero"}),
        ({"gradients": GradientHealth(0.04, 0.01, 100)}, {"gradients are numbers"}),
    ],
)
def test_each_check_by_hand(told: dict[str, Any], expected: set[str]) -> None:
    made = attack_checks(n=1000, clean=0.9, **told)
    assert failed(made) == expected
    assert made.trusted == (not expected)


def test_one_image_of_few_is_noise() -> None:
    assert attack_checks(n=10, clean=0.9, by_eps={0.1: 0.5, 0.2: 0.6}).trusted
    assert not attack_checks(n=10, clean=0.9, by_eps={0.1: 0.5, 0.2: 0.7}).trusted


def test_nothing_measured_is_not_trusted_and_bad_numbers_are_told() -> None:
    made = attack_checks(n=10, clean=0.9)
    assert not made.trusted
    assert made.reason == "nothing was measured that could be checked"
    with pytest.raises(InputError, match=r"noise is 1\.5"):
        attack_checks(n=10, clean=0.9, noise=1.5)
    with pytest.raises(InputError, match="at least 1"):
        attack_checks(n=0, clean=0.9)
