"""A remedy against adversarial images: a head that is tuned on them, over locked features.

As TeCoA does it (Mao et al. 2023, arXiv 2212.07016, equation 4): images are attacked by a few steps
of PGD on their pixels, and cross-entropy against the labels is lowered on what comes out. TeCoA
tunes the encoder; here it stays as it is and only a linear map is learned, which takes minutes and
moves less.

Letters: B images, K classes, D width of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.auditing.attacks.attackable import (
    BATCH,
    Attackable,
    accuracy,
    attackable_of,
    checked_targets,
)
from isthmus.auditing.attacks.attacking import attack, log_odds
from isthmus.auditing.attacks.balls import project
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import InputError


@dataclass(frozen=True)
class HeadAccuracy:
    """What a head is worth on images that it was not tuned on.

    Attributes:
        clean: Accuracy on the images.
        attacked: Accuracy under PGD (L-inf) at `eps`, made against this head.
        eps: In pixel units.
        n: How many images.
    """

    clean: float
    attacked: float
    eps: float
    n: int


@dataclass(frozen=True)
class TunedHead:
    """A tuned head and what it gained; `before` and `after` go into a report.

    Attributes:
        weight: (K, D), with the temperature in it.
        bias: (K,).
        before: Accuracies of the head that was started from.
        after: Accuracies of the tuned one.
    """

    weight: Tensor
    bias: Tensor
    before: HeadAccuracy
    after: HeadAccuracy

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D), as a few-shot head gives them."""
        return features @ self.weight.T + self.bias


def zero_shot_head(classifier: ZeroShotClassifier) -> tuple[Tensor, Tensor]:
    """The linear head that a classifier without examples is: weights (K, D) and a bias (K,).

    Args:
        classifier: The classifier; a few-shot head and a calibration are no part of it.

    Example:
        >>> from isthmus.model.clip.dual_encoder import DualEncoder
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
        >>> zero_shot_head(classifier)[0].shape
        torch.Size([2, 8])
    """
    model = classifier.model
    weight = classifier.weights_ * float(model.logit_scale.detach().exp())
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
    return weight.clone(), torch.full((len(weight),), bias)


def with_head(
    features: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor, size: tuple[int, int]
) -> Attackable:
    """The subject that features and a linear head make.

    Args:
        features: Pixels (B, 3, H, W) in [0, 1] to features (B, D), with their gradient.
        weight: (K, D).
        bias: (K,).
        size: (H, W) of the pixels.

    Example:
        >>> with_head(lambda x: x.mean((2, 3)), torch.eye(3), torch.zeros(3), (8, 8)).classes
        3
    """

    def logits(pixels: Tensor) -> Tensor:
        found = features(pixels)
        return (found @ weight.to(found.device).T + bias.to(found.device)).to(pixels.device)

    return attackable_of(logits, size)


def tune_head(
    features: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    pixels: Tensor,
    targets: Tensor,
    *,
    held_pixels: Tensor,
    held_targets: Tensor,
    eps: float,
    steps: int = 3,
    epochs: int = 5,
    learning_rate: float = 0.02,
    batch_size: int = BATCH,
    test_steps: int = 20,
    seed: int = 0,
) -> TunedHead:
    """Tunes a linear head on adversarial images and measures it on others.

    Args:
        features: Pixels (B, 3, H, W) in [0, 1] to features (B, D), with their gradient, as
            `features_of` gives them.
        weight: The head to start from (K, D), such as that of `zero_shot_head`.
        bias: Its bias (K,).
        pixels: Images to tune on (B, 3, H, W).
        targets: Their labels' numbers (B,).
        held_pixels: Images to measure on, none of those.
        held_targets: Their labels' numbers.
        eps: The L-inf ball's radius, in pixel units.
        steps: Steps of PGD in training.
        epochs: Passes over the images.
        learning_rate: Of Adam, as a share of the root mean square of the starting weights, so
            that it is the same for a model of any temperature.
        batch_size: Images in one pass.
        test_steps: Steps of PGD in measuring.
        seed: Of the order of images and of random starts.

    Raises:
        InputError: If shapes do not fit, eps is not more than 0, or features have no gradient.
        MissingExtraError: If adversarial-robustness-toolbox is not installed.

    Example:
        >>> pixels, targets = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
        >>> told = {"held_pixels": pixels, "held_targets": targets, "eps": 2 / 255}
        >>> start = torch.eye(3), torch.zeros(3)
        >>> made = tune_head(lambda x: x.mean((2, 3)), *start, pixels, targets, **told)
        >>> made.weight.shape
        torch.Size([3, 3])
    """
    if not eps > 0 or steps < 1 or epochs < 1:
        raise InputError(
            f"got eps {eps}, {steps} steps and {epochs} epochs: expected more than 0 of each"
        )
    size = (pixels.shape[2], pixels.shape[3])
    subject = with_head(features, weight, bias, size)
    checked_targets(subject, pixels, targets)
    checked_targets(subject, held_pixels, held_targets)

    def measured(head: Attackable) -> HeadAccuracy:
        told = {"eps": eps, "steps": test_steps, "seed": seed, "batch_size": batch_size}
        found = attack(head, held_pixels, held_targets, method="pgd", norm="linf", **told)  # type: ignore[arg-type]
        return HeadAccuracy(
            clean=accuracy(head, held_pixels, held_targets, batch_size),
            attacked=accuracy(head, found, held_targets, batch_size),
            eps=eps,
            n=len(held_pixels),
        )

    before = measured(subject)
    learned = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    rate = learning_rate * float(weight.square().mean().sqrt())
    optimizer = torch.optim.Adam(learned, lr=rate)
    total = epochs * math.ceil(len(pixels) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
            for chosen in torch.split(order, batch_size):
                head = learned[0].detach(), learned[1].detach()
                made = _attacked(
                    features, *head, pixels[chosen], targets[chosen], eps, steps, generator
                )
                with torch.no_grad():
                    seen = features(made)
                aim = targets[chosen].to(seen.device)
                loss = F.cross_entropy(seen @ learned[0].T + learned[1], aim)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    tuned = learned[0].detach(), learned[1].detach()
    return TunedHead(*tuned, before, measured(with_head(features, *tuned, size)))


def _attacked(
    features: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    pixels: Tensor,
    targets: Tensor,
    eps: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """A few steps of PGD in L-inf from a random start; plain, since training needs no best one."""
    start = 2 * torch.rand(pixels.shape, generator=generator).to(pixels.device) - 1
    made = project(pixels + eps * start, pixels, "linf", eps)
    for _ in range(steps):
        made = made.detach().requires_grad_()
        seen = features(made)
        scores = seen @ weight.to(seen.device).T + bias.to(seen.device)
        loss = log_odds(scores, targets.to(seen.device)).sum()
        (gradient,) = torch.autograd.grad(loss, made)
        step = eps * min(1.0, 2.5 / steps)
        made = project(made.detach() + step * gradient.sign(), pixels, "linf", eps)
    return made
