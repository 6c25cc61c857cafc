"""What imbalance of the training images costs, and what remedies give back.

A controlled study: the same linear head is trained on subsets of the same features that differ
only in how unequal their classes are.

Letters: n images, D width of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.auditing.measures.classes import Numbers
from isthmus.classification.few_shot import linear_probe
from isthmus.errors import InputError

RATIOS = (1, 10, 50, 100)
Method = Literal["plain", "weighted", "adjusted", "fewer"]
METHODS: tuple[Method, ...] = ("plain", "weighted", "adjusted", "fewer")
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ImbalanceArm:
    """One way of training at one imbalance, over seeds.

    Attributes:
        ratio: Images of the largest class over those of the smallest, as asked for.
        method: "plain"; "weighted", with a loss in which all classes weigh the same; "adjusted",
            the plain head's logits less the log priors; "fewer", the control: as many images in
            all, equally many of each class.
        images: Training images in all.
        smallest: Training images of the smallest class.
        balanced_accuracy: Mean over seeds, of mean recall.
        sd: Its standard deviation over seeds; None for one seed.
        head: Mean recall of the largest third of classes.
        medium: Of the middle third.
        tail: Of the smallest third.
        gain: Balanced accuracy less that of the plain head at this ratio, the mean over seeds.
        tail_gain: The same of the tail's recall.
        fall: Tail recall less that of the same classes, plain, at the first ratio.
    """

    ratio: float
    method: Method
    images: int
    smallest: int
    balanced_accuracy: float
    sd: float | None
    head: float | None
    medium: float | None
    tail: float | None
    gain: float
    tail_gain: float | None
    fall: float | None


@dataclass(frozen=True)
class ImbalanceStudy:
    """All arms.

    Attributes:
        classes: C.
        largest: Training images of the largest class, at every ratio.
        test_images: Images that were classified.
        seeds: Seeds of the order of classes and the choice of images.
        arms: Every method at every ratio.
        note: What a reader has to know of these numbers; empty where nothing.
    """

    classes: int
    largest: int
    test_images: int
    seeds: tuple[int, ...]
    arms: tuple[ImbalanceArm, ...]
    note: str


def long_tailed_counts(largest: int, classes: int, ratio: float) -> tuple[int, ...]:
    """Images of each class, from head to tail, in an exponential profile.

    The i-th of C classes has largest * ratio ** (-i / (C - 1)) images (Cui et al. 2019, arXiv
    1901.05555), rounded, at least one.

    Args:
        largest: Images of the first class.
        classes: C, at least two.
        ratio: Images of the first class over those of the last, at least 1.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> long_tailed_counts(100, 3, 100)
        (100, 10, 1)
    """
    if largest < 1 or classes < 2 or ratio < 1:
        raise InputError(
            f"got {largest} images, {classes} classes, ratio {ratio}: expected at least 1, 2 and 1"
        )
    profile = largest * float(ratio) ** (-np.arange(classes) / (classes - 1))
    return tuple(int(n) for n in np.maximum(1, np.rint(profile)))


def adjusted_logits(logits: Tensor, priors: Tensor, tau: float = 1.0) -> Tensor:
    """Post-hoc logit adjustment (Menon et al. 2021, arXiv 2007.07314, equation 9).

    Where softmax(logits) are the training images' posteriors and tau is 1, the likeliest class is
    the one of least balanced error, as if all classes were equally frequent.

    Args:
        logits: Logits (n, C).
        priors: Share of each class among the training images (C,), above 0.
        tau: Strength.

    Raises:
        InputError: If a prior is not above 0.

    Example:
        >>> adjusted_logits(torch.tensor([[1.0, 0.5]]), torch.tensor([0.75, 0.25])).argmax()
        tensor(1)
    """
    if not bool((priors > 0).all()):
        raise InputError(f"a prior is {float(priors.min())}: expected each above 0")
    return logits - tau * priors.log()


def imbalance_study(
    train_features: Tensor | NDArray[Any],
    train_targets: Numbers,
    test_features: Tensor | NDArray[Any],
    test_targets: Numbers,
    *,
    ratios: Sequence[float] = RATIOS,
    seeds: Sequence[int] = (0, 1, 2),
    penalty: float = 1e-4,
    most_steps: int = 200,
) -> ImbalanceStudy:
    """Trains the same head at several imbalances, and measures what remedies give back.

    A seed draws which classes are head and tail, and the order in which images are left out, both
    the same at all ratios. The largest class has at every ratio as many images as the smallest has
    in `train_targets`. A higher ratio also means fewer images; the method "fewer" tells that loss
    from the loss by imbalance.

    Args:
        train_features: Features (n, D) of labelled images that nothing is reported on.
        train_targets: Their classes (n,).
        test_features: Features (m, D).
        test_targets: Their classes (m,).
        ratios: Images of the largest class over those of the smallest.
        seeds: One run for each.
        penalty: Weight of the heads' penalty.
        most_steps: Most iterations of a head.

    Raises:
        InputError: If there are fewer than three classes, a class has no training image, there is
            no test image, or numbers do not match.

    Example:
        >>> centres = 3 * torch.eye(3)
        >>> targets = torch.arange(3).repeat_interleave(20)
        >>> features = centres[targets] + torch.randn(60, 3)
        >>> study = imbalance_study(features, targets, features, targets, ratios=(1, 10))
        >>> [(arm.ratio, arm.method, arm.images) for arm in study.arms[3:6]]
        [(1, 'fewer', 60), (10, 'plain', 28), (10, 'weighted', 28)]
    """
    train, test = (torch.as_tensor(f).float() for f in (train_features, test_features))
    truth, goal = (np.asarray(t).astype(np.int64) for t in (train_targets, test_targets))
    _check(train, truth, test, goal, ratios, seeds)
    classes = int(truth.max()) + 1
    largest = int(np.bincount(truth).min())
    runs: dict[tuple[float, Method], list[NDArray[np.float64]]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        order = rng.permutation(classes)
        images = [rng.permutation(np.flatnonzero(truth == c)) for c in range(classes)]
        for ratio in ratios:
            counts = np.empty(classes, dtype=np.int64)
            counts[order] = long_tailed_counts(largest, classes, ratio)
            predicted = _predictions(
                train, torch.as_tensor(truth), test, images, counts, order, penalty, most_steps
            )
            for method, said in predicted.items():
                runs.setdefault((ratio, method), []).append(_recalls(said, goal, order))
    return ImbalanceStudy(
        classes=classes,
        largest=largest,
        test_images=len(goal),
        seeds=tuple(seeds),
        arms=tuple(
            _arm(ratio, method, runs, long_tailed_counts(largest, classes, ratio), ratios[0])
            for ratio in ratios
            for method in METHODS
        ),
        note=_note(largest, ratios, classes, len(np.unique(goal))),
    )


def _check(
    train: Tensor,
    truth: Counts,
    test: Tensor,
    goal: Counts,
    ratios: Sequence[float],
    seeds: Sequence[int],
) -> None:
    if len(train) != len(truth) or len(test) != len(goal) or not len(goal):
        raise InputError(
            f"got {len(train)} and {len(test)} features and {len(truth)} and {len(goal)} targets: "
            "expected one target for each, and at least one test image"
        )
    counts = np.bincount(truth) if len(truth) else np.zeros(0)
    if len(counts) < 3 or not counts.all():
        raise InputError(
            f"got training images of {int((counts > 0).sum())} of {len(counts)} classes: expected "
            "at least three classes, for a head, a middle and a tail, with an image of each"
        )
    if goal.max() >= len(counts):
        raise InputError(f"test class {goal.max()} has no training image: add one or leave it out")
    if not len(ratios) or not len(seeds):
        raise InputError("got no ratio or no seed: expected at least one of each")


def _predictions(
    train: Tensor,
    truth: Tensor,
    test: Tensor,
    images: Sequence[Counts],
    counts: Counts,
    order: Counts,
    penalty: float,
    most_steps: int,
) -> dict[Method, Counts]:
    """What each method predicts after training on the first images of each class."""
    classes = len(counts)
    options: dict[str, Any] = {"penalty": penalty, "most_steps": most_steps}

    def logits(sizes: Counts, weights: Tensor | None = None) -> Tensor:
        kept = np.concatenate([images[c][: sizes[c]] for c in range(classes)])
        head = linear_probe(train[kept], truth[kept], classes, class_weights=weights, **options)
        return head(test)

    priors = torch.as_tensor(counts / counts.sum()).float()
    plain = logits(counts)
    found = {"plain": plain, "adjusted": adjusted_logits(plain, priors)}
    if counts.min() == counts.max():  # nothing to remedy: every method is the plain one
        found["weighted"] = found["fewer"] = plain
    else:
        found["weighted"] = logits(counts, 1 / (classes * priors))
        equal = np.full(classes, counts.sum() // classes)
        equal[order[: counts.sum() % classes]] += 1  # what does not divide goes to the head
        found["fewer"] = logits(equal)
    return {m: np.asarray(found[m].argmax(dim=-1).numpy()) for m in METHODS}


def _recalls(said: Counts, goal: Counts, order: Counts) -> NDArray[np.float64]:
    """Balanced accuracy and mean recall of head, medium and tail; not a number without images."""
    sizes = np.bincount(goal, minlength=len(order))
    right = np.bincount(goal[said == goal], minlength=len(order))
    parts = [order, *np.array_split(order, 3)]
    tested = [part[sizes[part] > 0] for part in parts]
    return np.array([(right[p] / sizes[p]).mean() if len(p) else np.nan for p in tested])


def _arm(
    ratio: float,
    method: Method,
    runs: dict[tuple[float, Method], list[NDArray[np.float64]]],
    counts: Sequence[int],
    first: float,
) -> ImbalanceArm:
    own, plain, start = (
        np.array(runs[key]) for key in ((ratio, method), (ratio, "plain"), (first, "plain"))
    )
    gain, fall = own - plain, own - start
    return ImbalanceArm(
        ratio=ratio,
        method=method,
        images=sum(counts),
        smallest=sum(counts) // len(counts) if method == "fewer" else counts[-1],
        balanced_accuracy=float(own[:, 0].mean()),
        sd=float(own[:, 0].std(ddof=1)) if len(own) > 1 else None,
        head=_mean(own[:, 1]),
        medium=_mean(own[:, 2]),
        tail=_mean(own[:, 3]),
        gain=float(gain[:, 0].mean()),
        tail_gain=_mean(gain[:, 3]),
        fall=_mean(fall[:, 3]),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean over seeds in which there is a value."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _note(largest: int, ratios: Sequence[float], classes: int, tested: int) -> str:
    told = []
    if max(ratios) > largest:
        told.append(
            f"The largest class has {largest} images, so that ratios above {largest} end at one "
            f"image of the smallest: the true ratio is {largest}."
        )
    if tested < classes:
        told.append(f"{classes - tested} of {classes} classes have no test image.")
    return " ".join(told)
