"""Conformal label sets: several labels where the classifier is unsure, and a promised coverage.

Split conformal prediction (Vovk et al. 2005): a threshold is taken from calibration images, and the
sets of new images hold the right label with probability at least 1 - alpha, whatever the classifier
is worth, if new images are like the calibration images (exchangeable).

Letters: n images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.evaluation.metrics import wilson

ConformalMethod = Literal["lac", "aps", "raps"]
CONFORMAL_METHODS = ("lac", "aps", "raps")
STRATA = ((0, 1), (2, 3), (4, 10), (11, 100), (101, None))
"""Set sizes that are looked at apart (Angelopoulos et al. 2021, section 4)."""
_ROUNDING = 1e-9
"""What (n + 1)(1 - alpha) may be off in floating point before it is rounded up."""


@dataclass(frozen=True)
class Stratum:
    """Coverage of the sets of some sizes.

    Attributes:
        least: The least size.
        most: The largest size; None for no limit.
        n: Images whose sets have such a size.
        coverage: The share of them whose set holds the right label.
        interval: Its 95 % Wilson interval.
    """

    least: int
    most: int | None
    n: int
    coverage: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ClassCoverage:
    """Coverage of one class.

    Attributes:
        target: The class.
        n: Its images.
        coverage: The share of them whose set holds the class.
        interval: Its 95 % Wilson interval.
    """

    target: int
    n: int
    coverage: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Conformal:
    """Label sets of one method, measured on test images.

    Attributes:
        method: "lac", "aps" or "raps".
        alpha: The share of images whose set may miss the right label.
        threshold: The largest score that a label in a set may have.
        n_calibration: Images that the threshold comes from.
        n: Test images.
        coverage: The share of test images whose set holds the right label.
        interval: Its 95 % Wilson interval.
        mean_size: Mean number of labels in a set.
        singletons: The share of sets of one label.
        empty: The share of sets of no label.
        by_class: Coverage of each class that has test images; the promise holds for all images
            together and not for each class.
        worst_class: The class of the lowest coverage, the first of equals.
        by_size: Coverage of the sizes in `STRATA` that occur.
        size_violation: The largest distance of one of them from 1 - alpha (SSCV; Angelopoulos et
            al. 2021, section 4).
        seed: Seed of the randomisation; "lac" has none.
    """

    method: str
    alpha: float
    threshold: float
    n_calibration: int
    n: int
    coverage: float
    interval: tuple[float, float]
    mean_size: float
    singletons: float
    empty: float
    by_class: tuple[ClassCoverage, ...]
    worst_class: int
    by_size: tuple[Stratum, ...]
    size_violation: float
    seed: int


def conformal_quantile(scores: Tensor, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score, that is the finite-sample quantile.

    Args:
        scores: Scores (n,) of the right labels of calibration images.
        alpha: The share of images whose set may miss the right label, between 0 and 1.

    Raises:
        ConfigError: If alpha is out of range.
        InputError: If there are too few images: there must be ceil(1 / alpha) - 1 or more.

    Example:
        >>> conformal_quantile(torch.arange(1, 10), alpha=0.2)
        8.0
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}: expected a share between 0 and 1, such as 0.1")
    n = len(scores)
    place = ceil((n + 1) * (1 - alpha) - _ROUNDING)
    if place > n:
        raise InputError(
            f"got {n} calibration images for alpha = {alpha:g}: expected at least "
            f"{ceil(1 / alpha - _ROUNDING) - 1}; add images, or choose a larger alpha"
        )
    return float(scores.double().sort().values[max(place, 1) - 1])


def label_scores(
    logits: Tensor,
    method: ConformalMethod,
    noise: Tensor | None = None,
    *,
    penalty: float = 0.01,
    free_ranks: int = 5,
) -> Tensor:
    """How badly each label fits each image (n, C), float64; sets hold labels that fit well.

    Args:
        logits: Logits (n, C); their softmax is what the methods look at.
        method: "lac": one minus the label's probability (Sadinle et al. 2019, arXiv 1609.00451).
            "aps": the probability of all likelier labels, plus a random share of the label's own
            (Romano et al. 2020, arXiv 2006.02544, equation 5). "raps": the same, plus `penalty`
            for each rank beyond `free_ranks` (Angelopoulos et al. 2021, arXiv 2009.14193,
            equation 4), which makes the largest sets smaller.
        noise: Uniform random numbers (n,) for "aps" and "raps"; None for 1, the label's whole
            probability, which gives larger sets and coverage above 1 - alpha.
        penalty: The penalty lambda of "raps".
        free_ranks: The number k_reg of ranks of "raps" without a penalty.

    Raises:
        ConfigError: If the method is unknown.

    Example:
        >>> label_scores(torch.zeros(1, 4), "aps").tolist()
        [[0.25, 0.5, 0.75, 1.0]]
    """
    if method not in CONFORMAL_METHODS:
        raise ConfigError(
            f'unknown conformal method "{method}": {suggestion(str(method), CONFORMAL_METHODS)}'
        )
    p = logits.double().softmax(dim=-1)
    if method == "lac":
        return 1 - p
    falling, order = p.sort(dim=-1, descending=True, stable=True)
    share = torch.ones(len(p), 1, dtype=torch.float64) if noise is None else noise.double()[:, None]
    scores = falling.cumsum(dim=-1) - falling + share * falling
    if method == "raps":
        ranks = torch.arange(1, p.shape[1] + 1, dtype=torch.float64)
        scores = scores + penalty * (ranks - free_ranks).clamp(min=0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def conformal(
    calibration: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    method: ConformalMethod = "lac",
    alpha: float = 0.1,
    seed: int = 0,
    penalty: float = 0.01,
    free_ranks: int = 5,
) -> Conformal:
    """Takes the threshold from calibration images and measures the sets of test images.

    Args:
        calibration: Logits (n, C) and right labels (n,) of calibration images.
        test: Logits (m, C) and right labels (m,) of other images.
        method: As for `label_scores`.
        alpha: The share of images whose set may miss the right label.
        seed: Seed of the random shares of "aps" and "raps".
        penalty: As for `label_scores`.
        free_ranks: As for `label_scores`.

    Raises:
        ConfigError: If the method is unknown or alpha is out of range.
        InputError: If there are too few calibration images for alpha, or no test image; or if
            shapes do not fit or a logit is not finite.

    Example:
        >>> sure = 5 * torch.eye(3).repeat(10, 1), torch.arange(30) % 3
        >>> found = conformal(sure, sure, alpha=0.1)
        >>> found.coverage, found.mean_size, found.singletons
        (1.0, 1.0, 1.0)
    """
    classes = {logits.shape[-1] for logits, _ in (calibration, test)}
    for name, (logits, targets) in (("calibration", calibration), ("test", test)):
        if logits.ndim != 2 or len(logits) != len(targets) or len(classes) != 1:
            raise InputError(
                f"got {name} logits of shape {tuple(logits.shape)} and {len(targets)} right labels:"
                " expected (n, C) and n of them, with the same C for both parts"
            )
        if not torch.isfinite(logits).all():
            raise InputError(f"a {name} logit is not finite: check the model and its images")
    if not len(test[1]):
        raise InputError("got no test images: expected at least one")
    # One stream for both parts, so that no test image has a calibration image's number
    generator = torch.Generator().manual_seed(seed)
    scores = [
        label_scores(
            logits,
            method,
            torch.rand(len(logits), generator=generator, dtype=torch.float64),
            penalty=penalty,
            free_ranks=free_ranks,
        )
        for logits, _ in (calibration, test)
    ]
    right = scores[0].gather(1, calibration[1].long()[:, None])[:, 0]
    threshold = conformal_quantile(right, alpha)
    return _measured(
        scores[1] <= threshold, test[1].long(), method, alpha, threshold, len(right), seed
    )


def _measured(
    sets: Tensor,
    targets: Tensor,
    method: str,
    alpha: float,
    threshold: float,
    n_calibration: int,
    seed: int,
) -> Conformal:
    """What label sets (n, C), bool, are worth."""
    held = sets.gather(1, targets[:, None])[:, 0]
    sizes = sets.sum(dim=1)
    by_class = tuple(
        ClassCoverage(which, *_coverage(held[targets == which]))
        for which in sorted(set(targets.tolist()))
    )
    by_size = []
    for least, most in STRATA:
        own = held[(sizes >= least) & (sizes <= (sets.shape[1] if most is None else most))]
        if len(own):
            by_size.append(Stratum(least, most, *_coverage(own)))
    n, coverage, interval = _coverage(held)
    return Conformal(
        method=method,
        alpha=alpha,
        threshold=threshold,
        n_calibration=n_calibration,
        n=n,
        coverage=coverage,
        interval=interval,
        mean_size=float(sizes.double().mean()),
        singletons=float((sizes == 1).double().mean()),
        empty=float((sizes == 0).double().mean()),
        by_class=by_class,
        worst_class=min(by_class, key=lambda c: c.coverage).target,
        by_size=tuple(by_size),
        size_violation=max(abs(s.coverage - (1 - alpha)) for s in by_size),
        seed=seed,
    )


def _coverage(held: Tensor) -> tuple[int, float, tuple[float, float]]:
    """Number, share and interval of the sets that hold the right label."""
    n, right = len(held), int(held.sum())
    return n, right / n, wilson(right, n)
