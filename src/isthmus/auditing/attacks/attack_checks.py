"""Can an attack be trusted here? Signs that a model hides its gradient rather than resists.

The checks are those of Carlini et al. (2019, arXiv 1902.06705, section 5) and of Athalye et al.
(2018, arXiv 1802.00420, section 3.1). Where one fails, the accuracy under attack says how bad the
attack is, not how good the model.

Letters: B images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.auditing.attacks.attackable import BATCH, Attackable, checked_targets
from isthmus.auditing.attacks.attacking import log_odds
from isthmus.errors import InputError

NEARLY_ZERO = 0.02
"""The accuracy that a white-box attack without a real bound may leave."""


@dataclass(frozen=True)
class GradientHealth:
    """What the gradient of the loss by the pixels is like.

    Attributes:
        zero: The share of images whose gradient is 0 in every pixel.
        not_finite: The share of images whose gradient has a NaN or an infinity.
        n: How many images.
    """

    zero: float
    not_finite: float
    n: int


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What is checked.
        passed: Whether it holds.
        got: What was measured.
        expected: What would hold for an attack that works.
        meaning: What it means in one sentence.
    """

    name: str
    passed: bool
    got: str
    expected: str
    meaning: str


@dataclass(frozen=True)
class AttackChecks:
    """All checks of one attack.

    Attributes:
        checks: The checks.
        trusted: Whether all of them hold; without one, False.
        reason: Why it cannot be trusted; empty where it can.
    """

    checks: tuple[Check, ...]
    trusted: bool
    reason: str


def gradient_health(
    attackable: Attackable, pixels: Tensor, targets: Tensor, batch_size: int = BATCH
) -> GradientHealth | None:
    """Looks at the gradient that white-box attacks follow, that of `log_odds`.

    Args:
        attackable: The subject.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        targets: The right labels' numbers (B,).
        batch_size: Images in one pass.

    Returns:
        Shares of images, or None where the model gives no gradient.

    Raises:
        InputError: If pixels or targets do not fit.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> rounding = attackable_of(lambda x: (10 * x.mean((2, 3))).round(), (8, 8))
        >>> gradient_health(rounding, torch.rand(2, 3, 8, 8), torch.tensor([0, 1])).zero
        1.0
    """
    checked_targets(attackable, pixels, targets)
    if not attackable.has_gradient:
        return None
    zero = broken = 0
    parts = zip(torch.split(pixels, batch_size), torch.split(targets, batch_size), strict=True)
    for part, aim in parts:
        part = part.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = log_odds(attackable.logits(part), aim).sum()
            (gradient,) = torch.autograd.grad(loss, part)
        gradient = gradient.flatten(1)
        zero += int((gradient == 0).all(dim=1).sum())
        broken += int((~gradient.isfinite()).any(dim=1).sum())
    return GradientHealth(zero / len(pixels), broken / len(pixels), len(pixels))


def attack_checks(
    *,
    n: int,
    clean: float,
    by_eps: Mapping[float, float] | None = None,
    by_steps: Mapping[int, float] | None = None,
    large_eps: float | None = None,
    white_box: float | None = None,
    black_box: float | None = None,
    noise: float | None = None,
    gradients: GradientHealth | None = None,
    tolerance: float = 0.02,
) -> AttackChecks:
    """Checks measured accuracies against what holds for any attack that works.

    What was not measured is left out. Accuracies are shares of the same n images.

    Args:
        n: How many images.
        clean: Accuracy without an attack.
        by_eps: Accuracy under the white-box attack for each eps.
        by_steps: Accuracy under it for each number of steps, at one eps.
        large_eps: Accuracy under it at L-inf 0.5, where any image can be turned plain grey.
        white_box: Accuracy under it at the eps of the next two.
        black_box: Accuracy under Square.
        noise: Accuracy under random noise of the same size.
        gradients: What `gradient_health` found.
        tolerance: How far accuracies of a random attack may miss an order that holds in the
            mean; at least one image.

    Raises:
        InputError: If n is less than 1 or an accuracy is outside of 0 to 1.

    Example:
        >>> made = attack_checks(n=100, clean=0.9, white_box=0.8, black_box=0.3, noise=0.88)
        >>> made.trusted
        False
        >>> made.reason
        'white-box at most black-box: got 0.800, expected at most 0.320'
    """
    measured = {"clean": clean, "large_eps": large_eps, "white_box": white_box}
    measured |= {"black_box": black_box, "noise": noise}
    measured |= {f"by_eps[{k:.3g}]": v for k, v in (by_eps or {}).items()}
    measured |= {f"by_steps[{k}]": v for k, v in (by_steps or {}).items()}
    for name, value in measured.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} is {value}: expected an accuracy, 0 to 1")
    if n < 1:
        raise InputError(f"got {n} images: expected at least 1")
    slack = max(tolerance, 1 / n) + 1e-9
    checks = []
    if by_eps:
        checks.append(_falling("accuracy falls with eps", {0.0: clean, **by_eps}, slack, "eps"))
    if by_steps:
        steps = {float(key): value for key, value in by_steps.items()}
        checks.append(_falling("accuracy falls with steps", steps, slack, "number of steps"))
    if large_eps is not None:
        meaning = "An eps of 0.5 can turn any image into plain grey, so nothing should resist it."
        name = "a large eps breaks everything"
        checks.append(_at_most(name, large_eps, max(NEARLY_ZERO, 1 / n) + 1e-9, meaning))
    if white_box is not None and black_box is not None:
        meaning = "Who knows the gradient should not do worse than who only sees the scores."
        checks.append(
            _at_most("white-box at most black-box", white_box, black_box + slack, meaning)
        )
    for name, value in (("black-box", black_box), ("white-box", white_box)):
        if value is not None and noise is not None:
            meaning = "An attack that does no better than random noise has found nothing."
            checks.append(_at_most(f"{name} at most random noise", value, noise + slack, meaning))
    if gradients is not None:
        checks += _gradient_checks(gradients)
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(f"{c.name}: got {c.got}, expected {c.expected}" for c in failed)
    if not checks:
        reason = "nothing was measured that could be checked"
    return AttackChecks(tuple(checks), bool(checks) and not failed, reason)


def _falling(name: str, values: Mapping[float, float], slack: float, of: str) -> Check:
    """Whether accuracies do not rise, each compared with the lowest before it."""
    ordered = [values[key] for key in sorted(values)]
    lowest, passed = ordered[0], True
    for value in ordered[1:]:
        passed &= value <= lowest + slack
        lowest = min(lowest, value)
    got = ", ".join(f"{value:.3f}" for value in ordered)
    expected = f"not rising by more than {slack:.3f}"
    return Check(
        name, passed, got, expected, f"A greater {of} leaves the attack all it had before."
    )


def _at_most(name: str, got: float, most: float, meaning: str) -> Check:
    return Check(name, got <= most, f"{got:.3f}", f"at most {min(most, 1):.3f}", meaning)


def _gradient_checks(health: GradientHealth) -> list[Check]:
    zero, not_finite = (f"{share:.3f} of images" for share in (health.zero, health.not_finite))
    meaning = "Where a gradient is zero, as behind a rounding step, the attack does not move."
    made = [Check("gradients are not zero", health.zero <= 0.05, zero, "at most 0.050", meaning)]
    meaning = "Where a gradient is no number, the attack has nothing to follow."
    name = "gradients are numbers"
    return [*made, Check(name, health.not_finite == 0, not_finite, "0.000 of images", meaning)]
