"""Fitting how logits become probabilities, and measuring how good those are.

Temperature scaling and vector scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2), all in
float64. Only logits and right labels come in; `isthmus.classification.calibration` keeps results.

Letters: B images, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.config.base import Amount, Config, Range, Share
from isthmus.errors import InputError

BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017, section 5)."""


@dataclass(frozen=True, kw_only=True)
class Metrics(Config):
    """How good probabilities are.

    Attributes:
        nll: Mean negative log-likelihood of the right label, in nats.
        ece: Expected calibration error; see `expected_calibration_error`.
        brier: Brier score, 0 to 2; see `brier_score`.
        accuracy: The share of images whose likeliest label is right.
    """

    nll: Amount
    ece: Share
    brier: Annotated[float, Range(0, 2)]
    accuracy: Share


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """The quality of softmax(logits).

    Args:
        logits: Logits (B, K).
        targets: The right labels' numbers (B,).

    Example:
        >>> measure(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        Metrics(nll=0.693147180559945..., ece=0.25, brier=0.5, accuracy=0.75)
    """
    logits = logits.double()
    probabilities = logits.softmax(dim=-1)
    confidence, found = probabilities.max(dim=-1)
    right = found == targets
    return Metrics(
        nll=float(F.cross_entropy(logits, targets)),
        ece=expected_calibration_error(confidence, right),
        brier=brier_score(probabilities, targets),
        accuracy=float(right.double().mean()),
    )


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy (Guo et al. 2017, equation 3).

    Predictions are sorted into bins of equal width by their confidence, and bins are weighted by
    their number of predictions. Of n predictions of perfect probabilities it is not 0 but of the
    order of sqrt(bins / n), since the accuracy of a bin is that of a sample.

    Args:
        confidence: Probabilities (B,) of the predictions.
        right: Whether each is right (B,).
        bins: How many bins; the m-th is ((m - 1) / bins, m / bins].

    Example:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        0.25
    """
    confidence = confidence.double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, confidence - right.double())
    return float(gaps.abs().sum() / len(confidence))


def brier_score(probabilities: Tensor, targets: Tensor) -> float:
    """The mean squared distance between probabilities and the truth (Brier 1950).

    It is summed over labels, so it lies between 0 and 2.

    Args:
        probabilities: Probabilities (B, K).
        targets: The right labels' numbers (B,).

    Example:
        >>> brier_score(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
        2.0
    """
    truth = F.one_hot(targets, probabilities.shape[1]).double()
    return float((probabilities.double() - truth).square().sum(dim=-1).mean())


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature T under which softmax(logits / T) has the least mean NLL.

    The NLL is convex in 1 / T, so Newton's method, kept within a bracket, finds its one minimum.

    Args:
        logits: Logits (B, K).
        targets: The right labels' numbers (B,).

    Raises:
        InputError: If there is no minimum at a finite, positive T: all images are right, or the
            right label's logit is on average no higher than the others'.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]]).repeat(4, 1)  # softmax is 3/4 where T = 1 / ln 3
        >>> 1 / fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        1.098612288668...
    """
    margins = logits.double() - logits.double().gather(1, targets[:, None])
    if float(margins.mean()) >= 0:  # the slope at 1 / T = 0
        raise InputError(
            "the right label's logit is on average no higher than the others': expected a "
            "classifier better than chance; check that the labels are in the order of the images"
        )
    if float(margins.max()) <= 0:  # the slope where 1 / T is infinite
        raise InputError(
            f"all {len(targets)} images are classified correctly, so no finite temperature fits "
            "them: add images, hard ones among them"
        )

    def slope_and_curvature(inverse: float) -> tuple[float, float]:
        """Derivatives of the mean NLL by 1 / T: a mean and a variance of margins."""
        weights = (inverse * margins).softmax(dim=-1)
        mean = (weights * margins).sum(dim=-1)
        spread = (weights * margins.square()).sum(dim=-1) - mean.square()
        return float(mean.mean()), float(spread.mean())

    low, high = 0.0, 1.0
    while slope_and_curvature(high)[0] < 0:
        low, high = high, 2 * high
    inverse = high
    for _ in range(200):  # as many halvings leave no bit of float64
        slope, curvature = slope_and_curvature(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        moved = step if low < step < high else (low + high) / 2
        if abs(moved - inverse) <= 1e-14 * inverse:
            break
        inverse = moved
    return 1 / inverse


def fit_vector(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A scale and a bias for each label, of the least penalised NLL.

    The paper has no penalty, and a label with few images may then have no finite optimum. Here a
    standard normal prior stands on how far a label's scale departs from 1 / T, as a share of it,
    and on its bias at its mean logit. The prior weighs as much as one image, so it fades with B.

    Args:
        logits: Logits (B, K).
        targets: The right labels' numbers (B,).
        temperature: The fitted temperature T, from which the search starts.

    Returns:
        Scales (K,) and biases (K,), float64. The NLL is at most that of temperature scaling.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(3, 1)
        >>> scale, bias = fit_vector(logits, torch.tensor([0, 1, 0, 1, 0, 0]), 1.0)
        >>> bool(bias[0] > bias[1])
        True
    """
    scaled = logits.double() / temperature
    mean = scaled.mean(dim=0)
    centred = scaled - mean  # so that a constant in the logits, as SigLIP's bias, is no matter
    factor = torch.ones_like(mean).requires_grad_()
    shift = torch.zeros_like(mean).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [factor, shift],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(factor * centred + mean + shift, targets)
        prior = (factor - 1).square().sum() + shift.square().sum()
        value = value + prior / (2 * len(targets))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    factor, shift = factor.detach(), shift.detach()
    return factor / temperature, shift - (factor - 1) * mean


def precisions(confidence: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """All thresholds on confidence, falling, and the share that is right at or above each.

    Args:
        confidence: Probabilities (B,) of the predictions.
        right: Whether each is right (B,).

    Example:
        >>> precisions(torch.tensor([0.5, 0.75, 0.5]), torch.tensor([False, True, True]))[0]
        tensor([0.7500, 0.5000])
    """
    ordered, order = confidence.sort(descending=True)
    shares = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    last_of_ties = torch.cat([ordered[:-1] > ordered[1:], torch.tensor([True])])
    return ordered[last_of_ties], shares[last_of_ties]


def precision_threshold(confidence: Tensor, right: Tensor, precision: float) -> float | None:
    """The least confidence from which on predictions are right for a given share.

    Args:
        confidence: Probabilities (B,) of the predictions.
        right: Whether each is right (B,).
        precision: The share, 0 to 1.

    Returns:
        One of the confidences; None where no threshold reaches the share.

    Example:
        >>> right = torch.tensor([True, True, False, False])
        >>> precision_threshold(torch.tensor([0.875, 0.75, 0.5, 0.25]), right, 0.6)
        0.5
    """
    thresholds, shares = precisions(confidence, right)
    reached = (shares >= precision).nonzero().flatten()
    return float(thresholds[reached[-1]]) if len(reached) else None
