"""Each template alone, and ensembles of some of them.

Letters: T templates, n images, C classes, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.classification.classifier_cache import zero_shot_weights
from isthmus.classification.scaling import measure
from isthmus.classification.templates import SLOT
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson
from isthmus.model.clip.dual_encoder import DualEncoder


@dataclass(frozen=True)
class TemplateAlone:
    """What one template is worth.

    Attributes:
        template: Its text.
        n: How many images.
        accuracy: The share whose likeliest label is right.
        interval: Its 95 % Wilson interval.
        ece: Expected calibration error; see `isthmus.classification.scaling`.
        brier: Brier score, 0 to 2.
        nll: Mean negative log-likelihood of the right label, in nats.
    """

    template: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    ece: float
    brier: float
    nll: float


@dataclass(frozen=True)
class TemplatesAlone:
    """What templates are worth, one by one.

    Attributes:
        templates: Each of them, in the order given.
        mean: The mean of their accuracies.
        sd: The standard deviation of them (T - 1 in the denominator); None of one template.
        lowest: The least accuracy.
        highest: The largest accuracy.
        worst: The template with the least, the first of equals.
        best: The template with the largest, the first of equals. It was chosen on these very
            images, so on others expect less of it.
    """

    templates: tuple[TemplateAlone, ...]
    mean: float
    sd: float | None
    lowest: float
    highest: float
    worst: str
    best: str


@dataclass(frozen=True)
class EnsembleSize:
    """What ensembles of so many templates are worth.

    Attributes:
        size: How many templates.
        draws: How many different subsets were measured.
        complete: Whether these are all subsets of that size.
        accuracy: The mean of their accuracies.
        sd: The standard deviation of them (`draws` - 1 in the denominator); None of one subset.
            Large subsets share most templates, so towards size T it falls by itself.
        lowest: The least accuracy.
        highest: The largest accuracy.
        ece: The mean expected calibration error.
        nll: The mean negative log-likelihood of the right label, in nats.
    """

    size: int
    draws: int
    complete: bool
    accuracy: float
    sd: float | None
    lowest: float
    highest: float
    ece: float
    nll: float


def templates_alone(logits: Tensor, targets: Tensor, texts: Sequence[str]) -> TemplatesAlone:
    """Accuracy and calibration of each template alone.

    Args:
        logits: Logits (T, n, C) of each template alone.
        targets: The right classes' numbers (n,).
        texts: The templates (T,).

    Raises:
        InputError: If shapes do not match, or logits are not finite.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
        >>> found = templates_alone(logits, torch.tensor([0, 1]), ["a {}", "the {}"])
        >>> found.best, found.mean, found.templates[1].accuracy
        ('a {}', 0.75, 0.5)
    """
    if logits.ndim != 3 or 0 in logits.shape:
        raise InputError(
            f"got logits of shape {tuple(logits.shape)}: expected (templates, images, classes)"
        )
    if len(texts) != len(logits):
        raise InputError(f"got {len(texts)} texts of {len(logits)} templates: expected one each")
    _check_targets(targets, logits.shape[1], logits.shape[2])
    if not bool(logits.isfinite().all()):
        raise InputError("got logits that are not finite: expected similarities times a factor")
    found = []
    for text, of_one in zip(texts, logits, strict=True):
        quality = measure(of_one, targets)
        right = round(quality.accuracy * len(targets))
        found.append(
            TemplateAlone(
                template=text,
                n=len(targets),
                accuracy=quality.accuracy,
                interval=wilson(right, len(targets)),
                ece=quality.ece,
                brier=quality.brier,
                nll=quality.nll,
            )
        )
    shares = [one.accuracy for one in found]
    return TemplatesAlone(
        templates=tuple(found),
        mean=float(np.mean(shares)),
        sd=_spread(shares),
        lowest=min(shares),
        highest=max(shares),
        worst=found[shares.index(min(shares))].template,
        best=found[shares.index(max(shares))].template,
    )


def accuracy_by_size(
    class_weights: Tensor,
    features: Tensor,
    targets: Tensor,
    scale: float,
    *,
    draws: int = 20,
    seed: int = 0,
) -> tuple[EnsembleSize, ...]:
    """Accuracy against the size of the ensemble: subsets of 1, 2, 4, ... and of all T templates.

    Subsets are drawn without repetition; all of them are measured where there are no more than
    `draws`. An ensemble's class weights are those of `ensemble_weights`.

    Args:
        class_weights: Class weights (T, C, D) of each template alone, of length 1; see
            `template_weights`.
        features: Features (n, D) of images, of length 1.
        targets: The right classes' numbers (n,).
        scale: The factor on similarities, exp(logit_scale); accuracy does not depend on it.
        draws: How many subsets of each size.
        seed: Seed of the draws.

    Raises:
        InputError: If shapes do not match, or `draws` is less than 1.

    Example:
        >>> weights = torch.eye(2).expand(3, 2, 2)
        >>> found = accuracy_by_size(weights, torch.eye(2), torch.tensor([0, 1]), 10.0)
        >>> [(one.size, one.draws, one.accuracy) for one in found]
        [(1, 3, 1.0), (2, 3, 1.0), (3, 1, 1.0)]
    """
    check_class_weights(class_weights, features)
    templates, classes, _ = class_weights.shape
    _check_targets(targets, len(features), classes)
    if draws < 1:
        raise InputError(f"got {draws} draws: expected at least 1")
    random = Random(seed)
    sizes = [1 << k for k in range(templates.bit_length()) if 1 << k < templates] + [templates]
    found = []
    for size in sizes:
        subsets = _subsets(templates, size, draws, random)
        qualities = [
            measure(scale * features @ ensemble_weights(class_weights[list(subset)]).T, targets)
            for subset in subsets
        ]
        shares = [quality.accuracy for quality in qualities]
        found.append(
            EnsembleSize(
                size=size,
                draws=len(subsets),
                complete=len(subsets) == comb(templates, size),
                accuracy=float(np.mean(shares)),
                sd=_spread(shares),
                lowest=min(shares),
                highest=max(shares),
                ece=float(np.mean([quality.ece for quality in qualities])),
                nll=float(np.mean([quality.nll for quality in qualities])),
            )
        )
    return tuple(found)


def _subsets(templates: int, size: int, draws: int, random: Random) -> list[tuple[int, ...]]:
    """Different subsets of the templates' numbers: all, or as many as are drawn."""
    if comb(templates, size) <= draws:
        return list(combinations(range(templates), size))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < draws:
        found[tuple(sorted(random.sample(range(templates), size)))] = None
    return list(found)


def ensemble_weights(class_weights: Tensor, weights: Tensor | None = None) -> Tensor:
    """Class weights (C, D) of an ensemble: the mean over templates, brought to length 1.

    With equal weights they are those of `ZeroShotClassifier` (Radford et al. 2021, section
    3.1.4), as far as float32 goes.

    Args:
        class_weights: Class weights (T, C, D) of each template alone, of length 1.
        weights: A weight for each template (T,), summing to 1; None for equal ones.

    Example:
        >>> ensemble_weights(torch.eye(2)[:, None])
        tensor([[0.7071, 0.7071]])
    """
    if weights is None:
        return F.normalize(class_weights.mean(dim=0), dim=-1)
    mean = torch.einsum("t,tcd->cd", weights.to(class_weights.dtype), class_weights)
    return F.normalize(mean, dim=-1)


def template_weights(model: DualEncoder, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class weights (T, C, D) of each template alone, of length 1: every prompt's own vector.

    Args:
        model: The dual encoder.
        labels: The labels (C,).
        templates: The templates (T,), each with `{}`.

    Returns:
        float32, on the CPU.

    Raises:
        PromptError: If a prompt is longer than the text tower's context.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> template_weights(model, ["cat", "dog"], ["a {}", "the {}", "{}"]).shape
        torch.Size([3, 2, 8])
    """
    prompts = [[template.replace(SLOT, label)] for template in templates for label in labels]
    vectors = zero_shot_weights(model, prompts)
    return vectors.reshape(len(templates), len(labels), -1)


def check_class_weights(class_weights: Tensor, features: Tensor) -> None:
    """Refuses class weights that are not (T, C, D), and features that are not (n, D)."""
    if class_weights.ndim != 3 or 0 in class_weights.shape:
        raise InputError(
            f"got class weights of shape {tuple(class_weights.shape)}: expected (templates, "
            "classes, width)"
        )
    width = class_weights.shape[2]
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise InputError(
            f"got features of shape {tuple(features.shape)}: expected (images, {width})"
        )


def _check_targets(targets: Tensor, n: int, classes: int) -> None:
    if tuple(targets.shape) != (n,):
        raise InputError(f"got targets of shape {tuple(targets.shape)}: expected ({n},)")
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise InputError(
            f"got targets from {int(targets.min())} to {int(targets.max())}: expected 0 to "
            f"{classes - 1}, the classes' numbers"
        )


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
