"""What a bench's attacks are made against: a model and the pixels of some images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.attacks.attackable import Attackable, accuracy, from_classifier, pixels_of
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.bench import Bench
from isthmus.auditing.subject import ClassifierSubject, Subject
from isthmus.errors import InputError
from isthmus.media.image import open_image

SIDE = 224
"""Pixels of an image that a model without pixels of its own is attacked with."""
SCORE_ONLY = 8
"""Images of a model that gives scores and no gradient; each score may take a second."""
COMPARED = 1 / 255
"""Where white box, black box, noise and remedies are compared, and steps are counted."""


@dataclass(frozen=True)
class Target:
    """What is attacked: a model and the pixels of some images that it gets right or wrong.

    Attributes:
        model: The model.
        pixels: (B, 3, H, W) in [0, 1].
        targets: (B,).
        numbers: Which of the audit's images they are.
        steps: Steps of an attack.
    """

    model: Attackable
    pixels: Tensor
    targets: Tensor
    numbers: list[int]
    steps: int

    def accuracy(self, pixels: Tensor | None = None) -> float:
        """Accuracy on changed pixels, or on the images as they are."""
        return accuracy(self.model, self.pixels if pixels is None else pixels, self.targets)

    def attacked(self, method: Any = "pgd", norm: Any = "linf", **options: Any) -> Tensor:
        """Adversarial pixels; see `attack`."""
        options = {"steps": self.steps} | options
        return attack(self.model, self.pixels, self.targets, method=method, norm=norm, **options)


def target_of(bench: Bench, subject: Subject | None = None) -> Target:
    """What a bench's attacks are made against."""
    subject = subject or bench.subject
    settings = bench.settings
    if isinstance(subject, ClassifierSubject):
        numbers = bench.some(settings.least(6, 24)).tolist()
        images = [bench.images[i] for i in numbers]
        model, pixels = _classifier(subject), pixels_of(subject.classifier, images)
    else:
        numbers = bench.some(SCORE_ONLY // 2 if settings.quick else SCORE_ONLY).tolist()
        pixels = torch.stack([pixels_at(open_image(bench.images[i])) for i in numbers])
        model = Attackable(
            lambda p: subject.logits([image_of(one) for one in p]).float().to(p.device),
            (SIDE, SIDE),
            len(subject.labels),
            has_gradient=False,
        )
    return Target(model, pixels, bench.targets[numbers], numbers, settings.least(4, 10))


@lru_cache(maxsize=4)
def _classifier(subject: ClassifierSubject) -> Attackable:
    return from_classifier(subject.classifier)


def pixels_at(image: Image.Image) -> Tensor:
    """Pixels (3, SIDE, SIDE) of an image, in [0, 1]."""
    made = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255
    return torch.from_numpy(made).permute(2, 0, 1).contiguous()


def image_of(pixels: Tensor) -> Image.Image:
    """An image of pixels (3, H, W) in [0, 1]."""
    levels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(levels)


def white_box(bench: Bench) -> Target:
    """What is attacked by its gradient.

    Raises:
        InputError: If it gives none.
    """
    target = target_of(bench)
    if not target.model.has_gradient:
        raise InputError(
            f"{bench.subject.name} gives no gradient: only noise, words, corruptions and black-box "
            "attacks can be tried on it"
        )
    return target
