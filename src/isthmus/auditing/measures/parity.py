"""Demographic parity and equalised odds of a classifier of many classes.

Both are defined for a yes or no. Here each class in turn is "yes" against all others, and the
differences are averaged over classes (one against the rest, macro average).

Letters: n images, G groups, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import MissingExtraError

Counts = NDArray[np.int64]
MOST_ROWS = 2_000_000
"""Images times classes that are put into one frame of fairlearn."""


@dataclass(frozen=True)
class Parity:
    """Differences between groups, 0 (none) to 1, averaged over classes.

    Attributes:
        demographic_parity: Mean largest difference of the share of images called a class, over
            classes that occur among the targets or predictions. Groups that have other classes
            differ here even if the classifier is always right.
        demographic_parity_by_chance: Its mean when groups are permuted.
        equalized_odds: Mean of the larger of two differences, of true and of false positive
            rates, over classes that have images, and images of other classes, in every group;
            None without such a class.
        equalized_odds_by_chance: Its mean when groups are permuted within classes.
        classes: Classes that the equalised odds are of.
        left_out: Classes that occur, but that some group has no image of.
    """

    demographic_parity: float
    demographic_parity_by_chance: float
    equalized_odds: float | None
    equalized_odds_by_chance: float | None
    classes: int
    left_out: int


def parity(
    targets: Counts,
    predicted: Counts,
    groups: Counts,
    *,
    rng: np.random.Generator,
    permutations: int = 50,
) -> Parity:
    """Both differences, by fairlearn, and what they are by chance.

    Demographic parity is that of Agarwal et al. 2018 (arXiv 1803.02453), equalised odds that of
    Hardt et al. 2016 (arXiv 1610.02413). fairlearn's difference is that of the highest and lowest
    group, and of the two rates of equalised odds the worse counts.

    Args:
        targets: The right classes (n,).
        predicted: The predicted classes (n,).
        groups: The group's number of each image (n,), 0 to G - 1, at least two.
        rng: Draws the permutations.
        permutations: Permutations for the levels by chance.

    Raises:
        MissingExtraError: If fairlearn is not installed.

    Example:
        >>> truth, groups = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
        >>> found = parity(truth, np.array([0, 1, 0, 0]), groups, rng=np.random.default_rng(0))
        >>> found.demographic_parity, found.equalized_odds
        (0.5, 1.0)
    """
    occurring = np.union1d(targets, predicted)
    everywhere = [c for c in occurring if _in_every_group(targets == c, groups)]
    selection, odds = (
        dict(zip(occurring.tolist(), found, strict=True))
        for found in _by_class(targets, predicted, groups, occurring)
    )
    chance = np.empty((permutations, 2))
    for row in chance:
        freely, within = rng.permutation(groups), _within(groups, targets, rng)
        row[0] = _differences(targets, predicted, freely)[0][occurring].mean()
        row[1] = _differences(targets, predicted, within)[1][everywhere].mean() if everywhere else 0
    return Parity(
        demographic_parity=float(np.mean(list(selection.values()))),
        demographic_parity_by_chance=float(chance[:, 0].mean()),
        equalized_odds=float(np.mean([odds[c] for c in everywhere])) if everywhere else None,
        equalized_odds_by_chance=float(chance[:, 1].mean()) if everywhere else None,
        classes=len(everywhere),
        left_out=len(np.unique(targets)) - len(everywhere),
    )


def _by_class(
    targets: Counts, predicted: Counts, groups: Counts, classes: Counts
) -> tuple[list[float], list[float]]:
    """Demographic parity and equalised odds of each class against the rest, by fairlearn.

    Its functions for one class take 50 ms a call. Here a class is a control feature: a frame holds
    many classes, one row for each image and class.
    """
    try:
        from fairlearn.metrics import MetricFrame  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MissingExtraError("demographic parity and equalised odds", "audit") from error
    selection: list[float] = []
    odds: list[float] = []
    at_once = max(1, MOST_ROWS // len(targets))
    for part in np.split(classes, range(at_once, len(classes), at_once)):
        frame = MetricFrame(
            metrics={
                "called": lambda _, said: said.mean(),
                "true": lambda own, said: said[own].sum() / max(1, own.sum()),
                "false": lambda own, said: said[~own].sum() / max(1, (~own).sum()),
            },
            y_true=(targets == part[:, None]).ravel(),
            y_pred=(predicted == part[:, None]).ravel(),
            sensitive_features=np.tile(groups, len(part)),
            control_features=np.repeat(part, len(targets)),
        )
        found = frame.difference(method="between_groups")
        selection += found["called"].tolist()
        odds += np.maximum(found["true"], found["false"]).tolist()
    return selection, odds


def _in_every_group(yes: NDArray[np.bool_], groups: Counts) -> bool:
    """Whether every group has images of a class, and images of others: both rates are defined."""
    images, own = np.bincount(groups), np.bincount(groups[yes], minlength=groups.max() + 1)
    return bool(((own > 0) & (own < images)).all())


def _within(groups: Counts, targets: Counts, rng: np.random.Generator) -> Counts:
    """Groups permuted among images of the same class."""
    found = np.empty_like(groups)
    shuffled = np.lexsort((rng.random(len(groups)), targets))
    found[shuffled] = groups[np.argsort(targets, kind="stable")]
    return found


def _differences(
    targets: Counts, predicted: Counts, groups: Counts
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same two differences of every class number: all at once, for permutations.

    A rate that a group has no image for counts as 0.
    """
    classes = int(max(targets.max(), predicted.max())) + 1
    shape = (int(groups.max()) + 1, classes)

    def counted(which: Counts, of: NDArray[np.bool_] | slice = slice(None)) -> Counts:
        cells = groups[of] * classes + which[of]
        return np.bincount(cells, minlength=shape[0] * classes).reshape(shape)

    own, called, hits = counted(targets), counted(predicted), counted(targets, targets == predicted)
    images = own.sum(axis=1, keepdims=True)
    true_rate = hits / np.maximum(1, own)
    false_rate = (called - hits) / np.maximum(1, images - own)
    odds = np.maximum(np.ptp(true_rate, axis=0), np.ptp(false_rate, axis=0))
    return np.ptp(called / images, axis=0), odds
