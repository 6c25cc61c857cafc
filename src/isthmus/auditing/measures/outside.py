"""Whether a classifier notices images of none of its classes (out-of-distribution detection).

A score says how much an image looks like one of the classes: the higher, the more. Images of the
classes ("inside") should score higher than images of other things ("outside").

Letters: n images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

KEPT = 0.95
"""The share of inside images that a threshold keeps, in the false positive rate at 95 % TPR."""
DRAWS = 1000
"""Resamples of a bootstrap."""
_AT_ONCE = 1 << 22
"""Numbers of a resampling pass: 32 MB."""

Floats = NDArray[np.float64]


def max_softmax(logits: Tensor) -> Tensor:
    """The probability of the likeliest class (n,) (Hendrycks and Gimpel 2017, arXiv 1610.02136).

    Args:
        logits: Logits (n, C).

    Example:
        >>> max_softmax(torch.zeros(1, 4)).tolist()
        [0.25]
    """
    return logits.double().softmax(dim=-1).amax(dim=-1)


def max_logit(logits: Tensor) -> Tensor:
    """The highest logit (n,) (Hendrycks et al. 2022, arXiv 1911.11132).

    Args:
        logits: Logits (n, C).

    Example:
        >>> max_logit(torch.tensor([[1.0, 3.0]])).tolist()
        [3.0]
    """
    return logits.double().amax(dim=-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The negative energy (n,), T log sum exp(logits / T) (Liu et al. 2020, equation 4).

    Liu et al. (arXiv 2010.03759) call its negative the energy, which is low inside.

    Args:
        logits: Logits (n, C).
        temperature: The temperature T.

    Example:
        >>> round(float(energy(torch.zeros(1, 2))), 6)
        0.693147
    """
    return temperature * (logits.double() / temperature).logsumexp(dim=-1)


def mcm(logits: Tensor, scale: float, temperature: float = 1.0) -> Tensor:
    """Maximum concept matching (n,): the highest softmax of cosine similarities.

    Ming et al. 2022 (arXiv 2211.13445, equation 1) take the similarities of an image with the
    classes' prompts at temperature 1, and not at the model's own, which is about 0.01. It is meant
    for zero-shot scores of a dual encoder; logits of a few-shot head are no similarities.

    Args:
        logits: Logits (n, C) of a dual encoder: similarities times `scale`, plus any constant.
        scale: The factor, exp(logit_scale).
        temperature: The temperature of the softmax.

    Raises:
        InputError: If the scale or the temperature is not above 0.

    Example:
        >>> round(float(mcm(torch.tensor([[100.0, 0.0]]), scale=100.0)), 6)
        0.731059
    """
    if scale <= 0 or temperature <= 0:
        raise InputError(
            f"scale is {scale} and temperature {temperature}: expected numbers above 0; the scale "
            "is the factor between similarities and logits"
        )
    return (logits.double() / (scale * temperature)).softmax(dim=-1).amax(dim=-1)


# --- How well a score tells inside from outside ------------------------------------------------


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The probability that an inside image scores higher than an outside one.

    It is the area under the ROC curve, exact by ranks (Mann and Whitney 1947): a tie counts half.

    Args:
        inside: Scores (n_in,) of images of the classes.
        outside: Scores (n_out,) of images of other things.

    Raises:
        InputError: If there is no score on one side, or one is not finite.

    Example:
        >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
        0.875
    """
    inner, outer = _checked(inside, outside)
    return _area(inner, outer)


def keep_threshold(inside: Tensor, share: float = KEPT) -> float:
    """The highest threshold at or above which at least a given share of inside images scores.

    Args:
        inside: Scores (n_in,) of images of the classes.
        share: The share that is to be kept, above 0 and at most 1.

    Raises:
        InputError: If there is no score, one is not finite, or the share is out of range.

    Example:
        >>> keep_threshold(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.75)
        2.0
    """
    if not 0 < share <= 1:
        raise InputError(f"the share to keep is {share}: expected more than 0 and at most 1")
    scores = np.sort(_scores(inside, "inside"))[::-1]
    # what 0.9 * 10 is short or long of 9 must not move the threshold by an image
    kept = int(np.ceil(share * len(scores) - 1e-9))
    return float(scores[kept - 1])


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold does: an image that scores below it is called "none of these".

    Attributes:
        threshold: The threshold.
        kept_inside: The share of inside images at or above it (true positive rate).
        kept_inside_interval: Its 95 % Wilson interval.
        kept_outside: The share of outside images at or above it (false positive rate).
        kept_outside_interval: Its 95 % Wilson interval.
    """

    threshold: float
    kept_inside: float
    kept_inside_interval: tuple[float, float]
    kept_outside: float
    kept_outside_interval: tuple[float, float]


def at_threshold(inside: Tensor, outside: Tensor, threshold: float) -> AtThreshold:
    """Measures a threshold, such as one that was chosen on other images or is deployed.

    Args:
        inside: Scores (n_in,) of images of the classes.
        outside: Scores (n_out,) of images of other things.
        threshold: The threshold.

    Raises:
        InputError: If there is no score on one side, or one is not finite.

    Example:
        >>> found = at_threshold(torch.tensor([0.9, 0.4]), torch.tensor([0.6, 0.2]), 0.5)
        >>> found.kept_inside, found.kept_outside
        (0.5, 0.5)
    """
    inner, outer = _checked(inside, outside)
    kept_in, kept_out = int((inner >= threshold).sum()), int((outer >= threshold).sum())
    return AtThreshold(
        threshold=float(threshold),
        kept_inside=kept_in / len(inner),
        kept_inside_interval=wilson(kept_in, len(inner)),
        kept_outside=kept_out / len(outer),
        kept_outside_interval=wilson(kept_out, len(outer)),
    )


@dataclass(frozen=True)
class Detection:
    """How well one score tells images of the classes from others.

    Attributes:
        score: The score's name.
        n_inside: Images of the classes.
        n_outside: Images of other things.
        auroc: Area under the ROC curve; 0.5 is chance, 1 perfect.
        auroc_interval: Its 95 % bootstrap interval, both sides resampled.
        at_95: What the threshold that keeps 95 % of the inside images does. Its `kept_outside` is
            the false positive rate at 95 % true positive rate (FPR95).
        seed: Seed of the bootstrap.
    """

    score: str
    n_inside: int
    n_outside: int
    auroc: float
    auroc_interval: tuple[float, float]
    at_95: AtThreshold
    seed: int


def detection(
    name: str, inside: Tensor, outside: Tensor, *, draws: int = DRAWS, seed: int = 0
) -> Detection:
    """Measures one score.

    Args:
        name: The score's name.
        inside: Scores (n_in,) of images of the classes.
        outside: Scores (n_out,) of images of other things.
        draws: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        InputError: If there is no score on one side, or one is not finite.

    Example:
        >>> found = detection("depth", torch.arange(10.0), torch.arange(10.0) - 20)
        >>> found.auroc, found.auroc_interval, found.at_95.kept_outside
        (1.0, (1.0, 1.0), 0.0)
    """
    inner, outer = _checked(inside, outside)
    return Detection(
        score=name,
        n_inside=len(inner),
        n_outside=len(outer),
        auroc=_area(inner, outer),
        auroc_interval=_interval(inner, outer, draws, seed),
        at_95=at_threshold(inside, outside, keep_threshold(inside)),
        seed=seed,
    )


def detect_outside(
    inside: Tensor,
    outside: Tensor,
    *,
    scale: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Detection, ...]:
    """Measures all scores: "max softmax", "max logit", "energy" and, with a scale, "mcm".

    To name the best of them and to give its AUROC on the same images is to flatter it a little.

    Args:
        inside: Logits (n_in, C) of images of the classes.
        outside: Logits (n_out, C) of images of other things.
        scale: The factor between similarities and logits of a zero-shot dual encoder; None where
            logits are no similarities, and then "mcm" is left out.
        draws: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        InputError: If there is no image on one side, the numbers of classes differ, or a logit is
            not finite.

    Example:
        >>> sure, unsure = 5 * torch.eye(3), torch.eye(3) / 10
        >>> [(d.score, d.auroc) for d in detect_outside(sure, unsure)]
        [('max softmax', 1.0), ('max logit', 1.0), ('energy', 1.0)]
    """
    if inside.ndim != 2 or outside.ndim != 2 or inside.shape[1] != outside.shape[1]:
        raise InputError(
            f"got logits of shapes {tuple(inside.shape)} and {tuple(outside.shape)}: expected "
            "(n, C) of the same C classes on both sides"
        )
    scores = {"max softmax": max_softmax, "max logit": max_logit, "energy": energy}
    pairs = [(name, score(inside), score(outside)) for name, score in scores.items()]
    if scale is not None:
        pairs.append(("mcm", mcm(inside, scale), mcm(outside, scale)))
    return tuple(detection(name, own, other, draws=draws, seed=seed) for name, own, other in pairs)


# --- Ranks ----------------------------------------------------------------------------------


def _scores(scores: Tensor, side: str) -> Floats:
    if scores.ndim != 1 or not len(scores):
        raise InputError(
            f"got {side} scores of shape {tuple(scores.shape)}: expected one score for each of at "
            "least one image"
        )
    if not torch.isfinite(scores).all():
        raise InputError(f"an {side} score is not finite: check the model's logits")
    found: Floats = scores.detach().double().cpu().numpy()
    return found


def _checked(inside: Tensor, outside: Tensor) -> tuple[Floats, Floats]:
    return _scores(inside, "inside"), _scores(outside, "outside")


def _area(inner: Floats, outer: Floats) -> float:
    ordered = np.sort(outer)
    below = np.searchsorted(ordered, inner, side="left")
    not_above = np.searchsorted(ordered, inner, side="right")
    return float((below + not_above).sum() / (2 * len(inner) * len(outer)))


def _interval(inner: Floats, outer: Floats, draws: int, seed: int) -> tuple[float, float]:
    """The percentile interval of the AUROC.

    How often a resample of n images has each image is a multinomial draw, so resamples are counts.
    """
    rng = np.random.default_rng(seed)
    ordered = np.sort(outer)
    below = np.searchsorted(ordered, inner, side="left")
    not_above = np.searchsorted(ordered, inner, side="right")
    areas: list[Floats] = []
    most = max(1, _AT_ONCE // (len(inner) + len(outer)))
    for start in range(0, draws, most):
        many = min(most, draws - start)
        own = rng.multinomial(len(inner), np.full(len(inner), 1 / len(inner)), size=many)
        others = rng.multinomial(len(outer), np.full(len(outer), 1 / len(outer)), size=many)
        under = np.concatenate([np.zeros((many, 1)), others.cumsum(axis=1)], axis=1)
        wins = (own * (under[:, below] + under[:, not_above])).sum(axis=1)
        areas.append(wins / (2 * len(inner) * len(outer)))
    low, high = np.quantile(np.concatenate(areas), (0.025, 0.975))
    return float(low), float(high)
