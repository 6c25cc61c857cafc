"""How far predictions under several wordings agree: flips and Fleiss' kappa.

Letters: R wordings, the first of which is the one that is deployed, n images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isthmus.errors import InputError
from isthmus.evaluation.metrics import bootstrap_mean, wilson

_CELLS = 4_000_000
"""Numbers that a pass of the bootstrap holds, so that memory does not grow with its draws."""


@dataclass(frozen=True)
class Agreement:
    """What becomes of predictions when words change.

    Attributes:
        wordings: How many wordings, R.
        n: How many images.
        flip_rate: The mean share of images whose prediction under another wording differs from
            that under the first.
        flip_interval: Its 95 % bootstrap interval over images.
        flipped_any: The share of images of which any wording's prediction differs.
        flipped_any_interval: Its 95 % Wilson interval.
        kappa: Fleiss' kappa of all wordings; None where it has no value.
        kappa_interval: Its 95 % bootstrap interval over images; None without a kappa.
        accuracy: The accuracy under each wording; empty without targets.
        accuracy_lowest: The least of them.
        accuracy_highest: The largest of them.
        note: Why a number is None; empty if there is nothing to say.
    """

    wordings: int
    n: int
    flip_rate: float
    flip_interval: tuple[float, float]
    flipped_any: float
    flipped_any_interval: tuple[float, float]
    kappa: float | None
    kappa_interval: tuple[float, float] | None
    accuracy: tuple[float, ...]
    accuracy_lowest: float | None
    accuracy_highest: float | None
    note: str


def agreement(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Flips, Fleiss' kappa and the range of accuracy over wordings.

    Args:
        predictions: The class of each image (R, n) under each wording, as numbers or names.
        targets: The right classes (n,), if known.
        draws: Resamples of images for the intervals.
        seed: Seed of the resamples.

    Raises:
        InputError: If there are fewer than two wordings, no image, or targets do not match.

    Example:
        >>> found = agreement([[0, 1, 1, 0], [0, 1, 0, 0]], targets=[0, 1, 1, 1])
        >>> found.flip_rate, found.accuracy, round(found.kappa, 4)
        (0.25, (0.75, 0.5), 0.4667)
    """
    found = _checked_predictions(predictions)
    wordings, n = found.shape
    differs = found[1:] != found[0]
    any_differs = int(differs.any(axis=0).sum())
    counts = category_counts(found)
    kappa, notes = fleiss_kappa(counts), []
    interval = None
    if kappa is None:
        notes.append("kappa has no value: every prediction is of the same class")
    else:
        interval = kappa_interval(counts, draws=draws, seed=seed)
        if interval is None:
            notes.append("kappa has no interval: expected at least two images")
    accuracy: tuple[float, ...] = ()
    if targets is None:
        notes.append("no accuracy: got no targets")
    else:
        right = np.asarray(targets)
        if right.shape != (n,):
            raise InputError(
                f"got targets of shape {right.shape}: expected ({n},), one for each image"
            )
        accuracy = tuple(float(share) for share in (found == right).mean(axis=1))
    return Agreement(
        wordings=wordings,
        n=n,
        flip_rate=float(differs.mean()),
        flip_interval=bootstrap_mean(differs.mean(axis=0).tolist(), draws=draws, seed=seed),
        flipped_any=any_differs / n,
        flipped_any_interval=wilson(any_differs, n),
        kappa=kappa,
        kappa_interval=interval,
        accuracy=accuracy,
        accuracy_lowest=min(accuracy, default=None),
        accuracy_highest=max(accuracy, default=None),
        note="; ".join(notes),
    )


def agreement_by_kind(
    predictions: ArrayLike,
    kinds: Sequence[str],
    targets: ArrayLike | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Agreement]:
    """`agreement` of each kind of change by itself, always with the first wording.

    Args:
        predictions: The class of each image (R, n); the first row is of the wording as deployed.
        kinds: The kind of each row after the first (R - 1,).
        targets: The right classes (n,), if known.
        draws: Resamples of images for the intervals.
        seed: Seed of the resamples.

    Returns:
        Kind to agreement, in the order in which kinds first appear.

    Raises:
        InputError: If there is not a kind for each row after the first; also as `agreement`.

    Example:
        >>> found = agreement_by_kind([[0, 1], [0, 1], [1, 1]], ["case", "typo"])
        >>> {kind: one.flip_rate for kind, one in found.items()}
        {'case': 0.0, 'typo': 0.5}
    """
    found = _checked_predictions(predictions)
    if len(kinds) != len(found) - 1:
        raise InputError(
            f"got {len(kinds)} kinds for {len(found)} wordings: expected {len(found) - 1}, one for "
            "each but the first"
        )
    rows = {kind: [0, *(i + 1 for i, k in enumerate(kinds) if k == kind)] for kind in kinds}
    return {
        kind: agreement(found[which], targets, draws=draws, seed=seed)
        for kind, which in rows.items()
    }


def category_counts(predictions: ArrayLike) -> NDArray[np.int64]:
    """How many wordings put each image in each class (n, C), of the classes that occur.

    Example:
        >>> category_counts([["cat", "dog"], ["cat", "cat"]]).tolist()
        [[2, 0], [1, 1]]
    """
    found = np.asarray(predictions)
    classes, numbers = np.unique(found, return_inverse=True)
    counts = np.zeros((found.shape[1], len(classes)), dtype=np.int64)
    for row in numbers.reshape(found.shape):
        counts[np.arange(len(row)), row] += 1
    return counts


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Agreement of many raters beyond that of chance (Fleiss 1971, Psychological Bulletin 76).

    Of each image, P_i is the share of pairs of raters that agree. P is the mean of P_i, and P_e
    the sum of squares of the classes' shares among all ratings. Kappa is (P - P_e) / (1 - P_e):
    1 where all agree, 0 where they agree as often as drawing from those shares would.

    Args:
        counts: How many raters put each image in each class (n, C); rows have the same sum.

    Returns:
        Kappa, or None where all ratings are of one class, so that 1 - P_e is 0.

    Raises:
        InputError: If there is no image, or rows are not of the same two or more raters.

    Example:
        >>> fleiss_kappa([[3, 0], [0, 3]])
        1.0
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise InputError(f"got counts of shape {table.shape}: expected (images, classes)")
    raters = table.sum(axis=1)
    if raters.min() != raters.max() or raters[0] < 2:
        raise InputError(
            f"got {raters.min():g} to {raters.max():g} ratings of an image: expected the same "
            "number for each, at least 2"
        )
    kappa = _kappas(table, np.ones((1, len(table))))[0]
    return None if np.isnan(kappa) else float(kappa)


def kappa_interval(
    counts: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % percentile interval of Fleiss' kappa over images, by resampling (Efron 1979).

    Resamples in which every rating is of one class have no kappa and are left out.

    Args:
        counts: How many raters put each image in each class (n, C).
        draws: Resamples.
        seed: Seed of the draws.

    Returns:
        Lower and upper end; None with fewer than two images, or if no resample has a kappa.

    Example:
        >>> kappa_interval([[3, 0], [0, 3], [3, 0], [0, 3]] * 10)
        (1.0, 1.0)
    """
    table = np.asarray(counts, dtype=np.float64)
    n = len(table)
    if n < 2:
        return None
    random = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    for start in range(0, draws, step := max(1, _CELLS // n)):
        # How often each image is drawn is all that a resample is
        times = random.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))
        found.append(_kappas(table, times.astype(np.float64)))
    kappas = np.concatenate(found)
    kappas = kappas[~np.isnan(kappas)]
    if not len(kappas):
        return None
    low, high = np.quantile(kappas, (0.025, 0.975))
    return float(low), float(high)


def _kappas(table: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each resample (draws,), given how often each image is in it (draws, n).

    NaN where every rating is of one class; it does not leave this file.
    """
    n, raters = times[0].sum(), table[0].sum()
    observed = times @ ((table * (table - 1)).sum(axis=1) / (raters * (raters - 1))) / n
    totals = times @ table
    # Whole numbers, so that a single class is seen exactly
    single = (totals > 0).sum(axis=1) == 1
    chance = np.square(totals / (n * raters)).sum(axis=1)
    kappas = (observed - chance) / np.where(single, 1.0, 1 - chance)
    return np.where(single, np.nan, kappas)


def _checked_predictions(predictions: ArrayLike) -> NDArray[Any]:
    found = np.asarray(predictions)
    if found.ndim != 2 or found.shape[0] < 2 or found.shape[1] < 1:
        raise InputError(
            f"got predictions of shape {found.shape}: expected (wordings, images), at least two "
            "wordings of at least one image"
        )
    return found
