"""The smallest perturbation that changes each image's label, by bisection over PGD.

What is found is an upper bound: a perturbation of that size exists. Whether a smaller one does,
no attack can rule out (Carlini et al. 2019, arXiv 1902.06705, section 4.1).

Letters: B images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isthmus.auditing.attacks.attackable import BATCH, Attackable, checked_targets, scores
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.attacks.balls import Norm, distances
from isthmus.errors import InputError

HALVINGS = 12
"""Halvings of a found perturbation's length: each costs one forward pass."""


@dataclass(frozen=True)
class SmallestEps:
    """The smallest perturbations that were found.

    Attributes:
        values: Each image's eps in pixel units: 0 where the image is wrong as it is, None where
            even the largest eps does not break it.
        median: The median over the images that were right; None where that is beyond `high`.
        breaks_half: The eps that breaks half of what was right; None where `high` does not.
        right: How many images were right as they are.
        broken: How many of these were broken.
        norm: "linf" or "l2".
        high: The largest eps that was tried.
        note: Why a number is missing.
    """

    values: tuple[float | None, ...]
    median: float | None
    breaks_half: float | None
    right: int
    broken: int
    norm: Norm
    high: float
    note: str


def smallest_eps(
    attackable: Attackable,
    pixels: Tensor,
    targets: Tensor,
    *,
    norm: Norm,
    steps: int = 20,
    seed: int = 0,
    low: float = 0.0,
    high: float,
    tolerance: float,
    batch_size: int = BATCH,
) -> SmallestEps:
    """Bisects the smallest eps at which PGD changes each image's label.

    All images are bisected together, each within its own bounds. A perturbation that was found is
    first shortened along its own direction, which needs no gradient, so its length is often far
    below the eps that was tried. Every eps that is returned belongs to a perturbation that was
    seen to work.

    Args:
        attackable: The subject.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        targets: The right labels' numbers (B,).
        norm: "linf" or "l2".
        steps: Steps of PGD at each eps.
        seed: Of PGD.
        low: Below this eps nothing is tried; a shortened perturbation may still come out lower.
        high: The largest eps.
        tolerance: Where bisection ends, in pixel units.
        batch_size: Images in one pass.

    Raises:
        InputError: If the bounds are not 0 <= low < high, the tolerance is not more than 0, shapes
            do not fit, or the model gives no gradient.
        MissingExtraError: If adversarial-robustness-toolbox is not installed.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> pixels = torch.full((1, 3, 8, 8), 0.5)
        >>> pixels[:, 0] += 0.1  # half of it off one channel and onto another changes the label
        >>> found = smallest_eps(
        ...     subject, pixels, torch.tensor([0]), norm="linf", high=0.25, tolerance=1e-3
        ... )
        >>> round(found.breaks_half, 2)
        0.05
    """
    if not 0 <= low < high or not tolerance > 0:
        raise InputError(
            f"got low {low}, high {high} and tolerance {tolerance}: expected 0 <= low < high and "
            "a tolerance of more than 0, in pixel units such as 8/255"
        )
    checked_targets(attackable, pixels, targets)
    right = scores(attackable, pixels, batch_size).argmax(dim=-1) == targets
    upper = torch.full((len(pixels),), math.inf, dtype=torch.float64)
    upper[~right.cpu()] = 0.0
    lower = torch.full_like(upper, low)

    def search(chosen: Tensor, eps: Tensor) -> None:
        """One attack on the chosen images, each at its eps, and what it tells of their bounds."""
        there = chosen.to(pixels.device)
        some, aim = pixels[there], targets[there]
        told = eps.to(pixels.device, pixels.dtype)
        tried = attack(
            attackable,
            some,
            aim,
            method="pgd",
            norm=norm,
            eps=told,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
        )
        works = scores(attackable, tried, batch_size).argmax(dim=-1) != aim
        lower[chosen[~works.cpu()]] = eps[~works.cpu()]
        if bool(works.any()):
            found = _shortened(attackable, some[works], tried[works], aim[works], batch_size)
            upper[chosen[works.cpu()]] = distances(found, some[works], norm).double().cpu()

    chosen = right.cpu().nonzero().flatten()
    if len(chosen):
        search(chosen, torch.full((len(chosen),), high, dtype=torch.float64))
    while len(chosen := ((upper - lower > tolerance) & upper.isfinite() & right.cpu()).nonzero()):
        chosen = chosen.flatten()
        search(chosen, (lower[chosen] + upper[chosen]) / 2)
    return _summary(upper, right.cpu(), norm, high)


@torch.no_grad()
def _shortened(
    attackable: Attackable, pixels: Tensor, tried: Tensor, targets: Tensor, batch_size: int
) -> Tensor:
    """The shortest part of each perturbation that still works, found by halving."""
    delta = tried - pixels
    low = torch.zeros(len(pixels), 1, 1, 1, dtype=torch.float64, device=pixels.device)
    high = torch.ones_like(low)
    best = tried.clone()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        part = (pixels + middle.to(pixels.dtype) * delta).clamp(0, 1)
        works = scores(attackable, part, batch_size).argmax(dim=-1) != targets
        best[works] = part[works]
        high[works], low[~works] = middle[works], middle[~works]
    return best


def _summary(upper: Tensor, right: Tensor, norm: Norm, high: float) -> SmallestEps:
    """The numbers of a report."""
    values = tuple(value if math.isfinite(value) else None for value in upper.tolist())
    those = sorted(upper[right].tolist())
    broken = sum(math.isfinite(value) for value in those)
    if not those:
        return SmallestEps(values, None, None, 0, 0, norm, high, "no image was right")
    half = those[(len(those) - 1) // 2]  # the first value at or below which half of them lie
    median = float(np.median(those)) if math.isfinite(those[len(those) // 2]) else None
    note = ""
    if median is None:
        note = f"{broken} of {len(those)} images that were right break at eps {high:.3g} or less"
    breaks_half = half if math.isfinite(half) else None
    return SmallestEps(values, median, breaks_half, len(those), broken, norm, high, note)
