"""What a bench's attacks are made against: a model and the pixels of some images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.attacks.attackable import (
    Attackable,
    accuracy,
    from_classifier,
    pixels_of,
    scores,
)
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.bench import Bench
from isthmus.auditing.subject import ClassifierSubject, Subject
from isthmus.errors import InputError
from isthmus.media.image import open_image

SIDE = 224
"""Pixels of an image that a model without pixels of its own is attacked with."""
SCORE_ONLY = 8
"""Images of a model that gives scores and no gradient; each score may take a second."""
RIGHT = (5, 12)
"""Images that are right and so can be broken: in a quick audit, and in a full one."""
MOST_OVER = 4
"""Times as many images as that at most, where few are right."""
COMPARED = 1 / 255
"""Where white box, black box, noise and remedies are compared, and steps are counted."""


@dataclass(frozen=True)
class Target:
    """What is attacked: a model and the pixels of some images.

    An image that is wrong needs no attack, so that only those that are right are attacked.

    Attributes:
        model: The model.
        sample: (n, 3, H, W) in [0, 1], images that were drawn.
        sample_targets: (n,).
        pixels: (B, 3, H, W), those of them that are right.
        targets: (B,).
        numbers: Which of the audit's images these are.
        steps: Steps of an attack.
        restarts: Starts of PGD; images that the first ones break are spared the others.
        made: Adversarial pixels by what they were made with: several parts ask for the same.
    """

    model: Attackable
    sample: Tensor
    sample_targets: Tensor
    pixels: Tensor
    targets: Tensor
    numbers: list[int]
    steps: int
    restarts: int
    made: dict[tuple[str, str, str], Tensor] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Images that were drawn."""
        return len(self.sample)

    @property
    def clean(self) -> float:
        """The share of them that are right as they are."""
        return len(self.pixels) / self.n

    def accuracy(self, pixels: Tensor) -> float:
        """The share of the images drawn that are right, if those that are become `pixels`."""
        return self.clean * accuracy(self.model, pixels, self.targets)

    def attacked(self, method: Any = "pgd", norm: Any = "linf", **options: Any) -> Tensor:
        """Adversarial pixels, made once; see `attack`."""
        options = {"steps": self.steps} | options
        if method == "pgd":
            options = {"restarts": self.restarts} | options
        key = (method, norm, repr(sorted(options.items())))
        if key not in self.made:
            self.made[key] = attack(
                self.model, self.pixels, self.targets, method=method, norm=norm, **options
            )
        return self.made[key]


def target_of(bench: Bench) -> Target:
    """What a bench's attacks are made against, the same for all parts.

    Raises:
        InputError: If none of the images drawn is right.
    """
    return bench.once("target of attacks", lambda: _target(bench))


def _target(bench: Bench) -> Target:
    subject, settings = bench.subject, bench.settings
    model = attackable(subject)
    count = SCORE_ONLY // 2 if settings.quick else SCORE_ONLY
    if isinstance(subject, ClassifierSubject):
        share = max(1 / MOST_OVER, float(bench.right.float().mean()))
        count = round(settings.least(*RIGHT) / share)
    numbers = bench.some(count)
    images = [bench.images[i] for i in numbers.tolist()]
    if isinstance(subject, ClassifierSubject):
        sample = pixels_of(subject.classifier, images)
    else:
        sample = torch.stack([pixels_at(open_image(image)) for image in images])
    targets = bench.targets[numbers]
    right = scores(model, sample).argmax(-1) == targets
    if not bool(right.any()):
        raise InputError(f"none of {len(images)} images is right: there is nothing to break")
    return Target(
        model,
        sample,
        targets,
        sample[right],
        targets[right],
        numbers[right].tolist(),
        settings.least(4, 10),
        settings.least(1, 3),
    )


def attackable(subject: Subject) -> Attackable:
    """A subject as a function of pixels; of one that is no classifier the scores alone."""
    if isinstance(subject, ClassifierSubject):
        return from_classifier(subject.classifier)
    return Attackable(
        lambda p: subject.logits([image_of(one) for one in p]).float().to(p.device),
        (SIDE, SIDE),
        len(subject.labels),
        has_gradient=False,
    )


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
