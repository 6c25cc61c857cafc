"""What it is worth to answer only when sure: risk, coverage and the area between.

A classifier may be silent where its confidence is low. Coverage is the share of images that it
answers, risk the share of those answers that is wrong.

Letters: n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isthmus.classification.scaling import precisions
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

COVERAGES = (1.0, 0.9, 0.8, 0.5)
ACCURACIES = (0.9, 0.95)
CURVE_POINTS = 100
"""Points of the curve that are kept, at most."""


@dataclass(frozen=True)
class AtCoverage:
    """Accuracy where only the surest predictions are given.

    Attributes:
        coverage: The share of images that is asked for.
        answered: How many images that is, rounded up.
        accuracy: The share of their predictions that is right; ties in confidence are averaged.
        interval: Its 95 % Wilson interval.
    """

    coverage: float
    answered: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class AtAccuracy:
    """How much can be answered at a wanted accuracy.

    Attributes:
        accuracy: The accuracy.
        coverage: The largest share of images that a threshold answers so well; None where no
            threshold does.
        threshold: That threshold on confidence.
    """

    accuracy: float
    coverage: float | None
    threshold: float | None


@dataclass(frozen=True)
class Selective:
    """What it is worth to answer only when sure.

    Attributes:
        n: Images.
        aurc: Area under the risk-coverage curve: the mean risk over all coverages.
        e_aurc: What of it is the confidence's fault: less the area of the best ordering, where
            every wrong prediction is less confident than every right one.
        coverage: Coverages of the curve.
        risk: The share of wrong predictions at each.
        at_coverage: Accuracies at some coverages.
        at_accuracy: Coverages at some accuracies. A threshold is chosen on the images that it is
            measured on, which flatters it a little.
    """

    n: int
    aurc: float
    e_aurc: float
    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    at_coverage: tuple[AtCoverage, ...]
    at_accuracy: tuple[AtAccuracy, ...]


def risks(confidence: Tensor, right: Tensor) -> Tensor:
    """The share of wrong predictions among the k surest, k = 1 to n (n,), float64.

    It is the risk-coverage curve of Geifman and El-Yaniv 2017 (arXiv 1705.08500, section 2) at
    coverages k / n. Predictions of the same confidence have no order; the mean over all orders is
    taken.

    Args:
        confidence: Confidences (n,) of the predictions.
        right: Whether each is right (n,).

    Example:
        >>> risks(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([True, False, True])).tolist()
        [0.0, 0.25, 0.3333333333333333]
    """
    ordered, order = confidence.double().sort(descending=True)
    wrong = (~right[order].bool()).double()
    group = torch.zeros(len(ordered), dtype=torch.long)  # predictions of one confidence
    group[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    share = group.bincount(weights=wrong) / group.bincount()
    return share[group].cumsum(0) / torch.arange(1, len(wrong) + 1)


def selective(
    confidence: Tensor,
    right: Tensor,
    *,
    coverages: Sequence[float] = COVERAGES,
    accuracies: Sequence[float] = ACCURACIES,
) -> Selective:
    """Measures a confidence as a reason to answer or to be silent.

    The areas are means of `risks`; AURC and E-AURC are those of Geifman et al. 2019 (arXiv
    1805.08206, section 3), where the best ordering's area is taken exactly and not by its limit.

    Args:
        confidence: Confidences (n,) of the predictions.
        right: Whether each is right (n,).
        coverages: Shares of images at which accuracy is told.
        accuracies: Accuracies for which coverage is told.

    Raises:
        InputError: If there is no image, shapes do not fit, or a coverage is out of range.

    Example:
        >>> found = selective(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 1, 0, 1]).bool())
        >>> round(found.aurc, 4), round(found.e_aurc, 4), found.at_coverage[-1].accuracy
        (0.1458, 0.0833, 1.0)
    """
    n = len(confidence)
    if not n or confidence.shape != right.shape or confidence.ndim != 1:
        raise InputError(
            f"got {tuple(confidence.shape)} confidences and {tuple(right.shape)} answers: expected "
            "one of each for each of at least one image"
        )
    if any(not 0 < share <= 1 for share in coverages):
        raise InputError(f"coverages are {list(coverages)}: expected shares above 0, at most 1")
    curve = risks(confidence, right)
    best = risks(right.double(), right)  # every right prediction is surer than every wrong one
    points = sorted({_at(i / CURVE_POINTS, n) for i in range(1, CURVE_POINTS + 1)})
    thresholds, shares = precisions(confidence, right)
    return Selective(
        n=n,
        aurc=float(curve.mean()),
        e_aurc=max(0.0, float(curve.mean() - best.mean())),
        coverage=tuple(k / n for k in points),
        risk=tuple(float(curve[k - 1]) for k in points),
        at_coverage=tuple(_at_coverage(share, curve, n) for share in coverages),
        at_accuracy=tuple(
            _at_accuracy(wanted, thresholds, shares, confidence) for wanted in accuracies
        ),
    )


def _at(share: float, n: int) -> int:
    """How many of n images a share is, rounded up but for what floating point adds."""
    return max(1, int(np.ceil(share * n - 1e-9)))


def _at_coverage(share: float, curve: Tensor, n: int) -> AtCoverage:
    k = _at(share, n)
    accuracy = 1 - float(curve[k - 1])
    return AtCoverage(share, k, accuracy, wilson(round(accuracy * k), k))


def _at_accuracy(
    wanted: float, thresholds: Tensor, shares: Tensor, confidence: Tensor
) -> AtAccuracy:
    reached = (shares >= wanted).nonzero().flatten()
    if not len(reached):
        return AtAccuracy(wanted, None, None)
    threshold = thresholds[reached[-1]]
    answered = float((confidence >= threshold).double().mean())
    return AtAccuracy(wanted, answered, float(threshold))
