"""How well each class is recognised, and what a classifier without sight would reach.

Letters: n images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import InputError, MissingExtraError
from isthmus.evaluation.metrics import wilson

Numbers = Tensor | NDArray[Any] | Sequence[int]
"""Class numbers (n,), on the CPU."""
Interval = tuple[float, float]
"""The ends of a 95 % interval."""
PIXELS = 16
"""Side of the images that the pixel baseline sees."""
PIXEL_STRENGTH = 0.01
"""Inverse weight of the baseline's penalty: there are often more pixels than images."""


@dataclass(frozen=True)
class ClassMeasure:
    """One class.

    Attributes:
        label: Its label.
        n: Images of it.
        right: How many of them were recognised.
        recall: right / n; None without images.
        interval: Wilson's interval of the recall; None without images.
        predicted: How many images, of any class, were called this.
        precision: right / predicted; None where nothing was called this.
    """

    label: str
    n: int
    right: int
    recall: float | None
    interval: Interval | None
    predicted: int
    precision: float | None


@dataclass(frozen=True)
class Confusion:
    """Two classes of which one is taken for the other.

    Attributes:
        true: Label of the images.
        predicted: What they were called.
        count: How many.
        share: count / images of the true class.
        images: Positions of the first of them.
    """

    true: str
    predicted: str
    count: int
    share: float
    images: tuple[int, ...]


@dataclass(frozen=True)
class ClassMeasures:
    """All classes.

    Attributes:
        n: Images.
        classes: Every class, in the order of the labels.
        accuracy: Share of images that were recognised.
        accuracy_interval: Wilson's interval of it.
        balanced_accuracy: Mean recall of the classes that have images.
        balanced_interval: Bootstrap interval of it; see `balanced_interval`.
        worst: Label of the class of the lowest recall, of several the one of most images.
        worst_recall: Its recall.
        bottom_decile: Mean recall of the worst tenth of classes, rounded down, at least one.
        true_shares: Label to its share of the images.
        predicted_shares: Label to its share of the predictions.
        total_variation: Half the sum of absolute differences of both shares: the share of
            predictions that would have to change for both to be equal.
        confusions: The most frequent pairs.
        few: Labels with a single image, whose recall can only be 0 or 1.
        without: Labels without images, left out of all means.
        chance: Accuracy of guessing: 1 / C.
        majority: Label of the most images.
        majority_accuracy: Accuracy of always answering with it.
        note: What a reader has to know of these numbers; empty where nothing.
    """

    n: int
    classes: tuple[ClassMeasure, ...]
    accuracy: float
    accuracy_interval: Interval
    balanced_accuracy: float
    balanced_interval: Interval
    worst: str
    worst_recall: float
    bottom_decile: float
    true_shares: dict[str, float]
    predicted_shares: dict[str, float]
    total_variation: float
    confusions: tuple[Confusion, ...]
    few: tuple[str, ...]
    without: tuple[str, ...]
    chance: float
    majority: str
    majority_accuracy: float
    note: str


def checked_predictions(
    targets: Numbers, predicted: Numbers, classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Targets and predictions as arrays, checked.

    Args:
        targets: The right classes (n,), 0 to C - 1.
        predicted: The predicted classes (n,).
        classes: C.

    Raises:
        InputError: If there are none, their numbers differ, or one is no class.

    Example:
        >>> checked_predictions([0, 1], torch.tensor([1, 1]), 2)
        (array([0, 1]), array([1, 1]))
    """
    found = []
    for name, given in (("targets", targets), ("predicted", predicted)):
        array = np.asarray(given)
        if array.ndim != 1 or not len(array):
            raise InputError(f"{name} has shape {array.shape}: expected (n,), n at least 1")
        if not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{name} is of type {array.dtype}: expected whole class numbers")
        if array.min() < 0 or array.max() >= classes:
            raise InputError(
                f"{name} holds {array.min()} to {array.max()}: expected numbers from 0 to "
                f"{classes - 1}, one for each of the {classes} labels"
            )
        found.append(array.astype(np.int64))
    if len(found[0]) != len(found[1]):
        raise InputError(
            f"got {len(found[0])} targets and {len(found[1])} predictions: expected one of each "
            "for an image"
        )
    return found[0], found[1]


def class_measures(
    targets: Numbers,
    predicted: Numbers,
    labels: Sequence[str],
    *,
    confusions: int = 10,
    shown: int = 4,
    draws: int = 2000,
    seed: int = 0,
) -> ClassMeasures:
    """Recall, precision and confusions of each class, and what sums them up.

    Args:
        targets: The right classes (n,).
        predicted: The predicted classes (n,).
        labels: The labels (C,).
        confusions: Most confusion pairs to report.
        shown: Most images to name of each pair.
        draws: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        InputError: If there are no images, or a number is no class.

    Example:
        >>> found = class_measures([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"])
        >>> found.worst, found.worst_recall, found.total_variation
        ('cat', 0.5, 0.25)
        >>> found.confusions[0]
        Confusion(true='cat', predicted='dog', count=1, share=0.5, images=(1,))
    """
    truth, said = checked_predictions(targets, predicted, len(labels))
    n, count = len(truth), len(labels)
    sizes = np.bincount(truth, minlength=count)
    calls = np.bincount(said, minlength=count)
    right = np.bincount(truth[truth == said], minlength=count)
    classes = tuple(
        _measure(labels[c], *map(int, (sizes[c], right[c], calls[c]))) for c in range(count)
    )
    # Of equal recalls the class of most images comes first: its recall is the surest
    present = sorted(np.flatnonzero(sizes).tolist(), key=lambda c: (right[c] / sizes[c], -sizes[c]))
    recalls = right[present] / sizes[present]
    true_shares, predicted_shares = sizes / n, calls / n
    few = tuple(labels[c] for c in np.flatnonzero(sizes == 1).tolist())
    without = tuple(labels[c] for c in np.flatnonzero(sizes == 0).tolist())
    most = int(sizes.argmax())
    return ClassMeasures(
        n=n,
        classes=classes,
        accuracy=float(right.sum() / n),
        accuracy_interval=wilson(int(right.sum()), n),
        balanced_accuracy=float(recalls.mean()),
        balanced_interval=balanced_interval(right, sizes, draws=draws, seed=seed),
        worst=labels[present[0]],
        worst_recall=float(recalls[0]),
        bottom_decile=float(recalls[: max(1, len(recalls) // 10)].mean()),
        true_shares=dict(zip(labels, true_shares.tolist(), strict=True)),
        predicted_shares=dict(zip(labels, predicted_shares.tolist(), strict=True)),
        total_variation=float(np.abs(true_shares - predicted_shares).sum() / 2),
        confusions=_confusions(truth, said, labels, sizes, confusions, shown),
        few=few,
        without=without,
        chance=1 / count,
        majority=labels[most],
        majority_accuracy=float(sizes[most] / n),
        note=_note(count, few, without),
    )


def _measure(label: str, n: int, right: int, predicted: int) -> ClassMeasure:
    return ClassMeasure(
        label=label,
        n=n,
        right=right,
        recall=right / n if n else None,
        interval=wilson(right, n) if n else None,
        predicted=predicted,
        precision=right / predicted if predicted else None,
    )


def _note(count: int, few: Sequence[str], without: Sequence[str]) -> str:
    told = []
    if without:
        told.append(
            f"{len(without)} of {count} labels have no image and are left out of all means."
        )
    if few:
        told.append(
            f"{len(few)} of {count} labels have a single image: their recall is 0 or 1, and the "
            "bootstrap takes it as certain."
        )
    return " ".join(told)


def _confusions(
    truth: NDArray[np.int64],
    said: NDArray[np.int64],
    labels: Sequence[str],
    sizes: NDArray[np.int64],
    most: int,
    shown: int,
) -> tuple[Confusion, ...]:
    """The most frequent pairs of a true and another predicted class."""
    wrong = np.flatnonzero(truth != said)
    pairs, which, counts = np.unique(
        truth[wrong] * len(labels) + said[wrong], return_inverse=True, return_counts=True
    )
    found = []
    for i in np.argsort(-counts, kind="stable")[:most]:
        true, other = divmod(int(pairs[i]), len(labels))
        found.append(
            Confusion(
                true=labels[true],
                predicted=labels[other],
                count=int(counts[i]),
                share=float(counts[i] / sizes[true]),
                images=tuple(wrong[which == i][:shown].tolist()),
            )
        )
    return tuple(found)


def balanced_interval(
    right: NDArray[np.int64], sizes: NDArray[np.int64], *, draws: int = 2000, seed: int = 0
) -> Interval:
    """The 95 % percentile bootstrap interval of balanced accuracy (Efron 1979).

    Images are resampled within their class, so that no class is lost from a resample. The number
    of right ones in a resample of a class is then binomial. A class whose images are all right, or
    all wrong, adds no width, so that the interval is too narrow where classes have few images.

    Args:
        right: Images of each class that were recognised (C,).
        sizes: Images of each class (C,); classes without are left out.
        draws: Resamples.
        seed: Seed of the draws.

    Raises:
        InputError: If no class has an image.

    Example:
        >>> balanced_interval(np.array([3, 5]), np.array([3, 5]))
        (1.0, 1.0)
    """
    present = sizes > 0
    if not present.any():
        raise InputError("no class has an image: expected at least one")
    n = sizes[present]
    drawn = np.random.default_rng(seed).binomial(n, right[present] / n, size=(draws, len(n)))
    low, high = np.quantile((drawn / n).mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def pixel_baseline(
    train_pixels: Tensor | NDArray[Any],
    train_targets: Numbers,
    test_pixels: Tensor | NDArray[Any],
) -> NDArray[np.int64]:
    """What logistic regression on 16x16 pixels predicts: a classifier that knows only colours.

    A model that does no better has learned nothing of the images that their average colours do not
    tell. Pixels are averaged over areas and standardised with the training images' mean and
    deviation.

    Args:
        train_pixels: Training images (m, channels, height, width), of any range.
        train_targets: Their classes (m,).
        test_pixels: Test images (n, channels, height, width), of the same range.

    Returns:
        Predicted classes (n,).

    Raises:
        InputError: If images and targets do not match, or there is only one class.
        MissingExtraError: If scikit-learn is not installed.

    Example:
        >>> dark, bright = torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
        >>> train = torch.cat([dark, bright]) + 0.1 * torch.rand(6, 3, 32, 32)
        >>> pixel_baseline(train, [0, 0, 0, 1, 1, 1], torch.cat([bright, dark])).tolist()
        [1, 1, 1, 0, 0, 0]
    """
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]
        from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped,unused-ignore]
        from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MissingExtraError("the pixel baseline", "audit") from error
    train, test, targets = _small(train_pixels), _small(test_pixels), np.asarray(train_targets)
    if len(train) != len(targets):
        raise InputError(f"got {len(train)} training images and {len(targets)} targets of them")
    if train.shape[1] != test.shape[1]:
        raise InputError("training and test images have different channels: convert them to RGB")
    if len(np.unique(targets)) < 2:
        raise InputError("all training images are of one class: expected at least two classes")
    regression = LogisticRegression(C=PIXEL_STRENGTH, max_iter=2000)
    fitted = make_pipeline(StandardScaler(), regression).fit(train, targets)
    return np.asarray(fitted.predict(test), dtype=np.int64)


def _small(pixels: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Images as rows of 16x16 pixels, each the mean of an area."""
    images = torch.as_tensor(pixels)
    if images.ndim != 4 or not len(images):
        raise InputError(
            f"got images of shape {tuple(images.shape)}: expected (n, channels, height, width)"
        )
    small = F.adaptive_avg_pool2d(images.double(), PIXELS).flatten(1)
    return np.asarray(small.numpy(), dtype=np.float64)
