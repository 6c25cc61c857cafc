"""Do adversarial images made against one model fool another?

Transfer tells how far a model's weakness is its own (Papernot et al. 2016, arXiv 1605.07277).
Images made against one template of a prompt may fail against the ensemble that is deployed.

Letters: B images, M sources, N models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from isthmus.auditing.attacks.attackable import BATCH, Attackable, accuracy
from isthmus.errors import InputError


@dataclass(frozen=True)
class Transfer:
    """Accuracies (M x N) on adversarial images.

    Attributes:
        sources: What each row's images were made against.
        models: What each column's accuracy is of.
        accuracies: Rows of accuracies.
        clean: Each model's accuracy on the images as they were.
        n: How many images.
        note: Which columns saw images that were resized to them.
    """

    sources: tuple[str, ...]
    models: tuple[str, ...]
    accuracies: tuple[tuple[float, ...], ...]
    clean: tuple[float, ...]
    n: int
    note: str


def transfer(
    adversarial: Mapping[str, Tensor],
    models: Mapping[str, Attackable],
    pixels: Tensor,
    targets: Tensor,
    batch_size: int = BATCH,
) -> Transfer:
    """Measures every model on the images that were made against each source.

    Images are resized to a model of another input size, bilinearly. The column of the clean
    accuracy is measured on images that were resized likewise.

    Args:
        adversarial: Adversarial pixels (B, 3, H, W) by the name of what they were made against.
        models: The models by name; their classes must be in the same order.
        pixels: The images' own pixels (B, 3, H, W).
        targets: The right labels' numbers (B,).
        batch_size: Images in one pass.

    Raises:
        InputError: If there is no source or no model, numbers of images or of classes differ, or
            pixels are outside of [0, 1].

    Example:
        >>> import torch
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> one = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> red = torch.zeros(1, 3, 8, 8)
        >>> red[:, 0] = 1.0
        >>> made = {"one": red.flip(1)}  # blue
        >>> transfer(made, {"one": one}, red, torch.tensor([0])).accuracies
        ((0.0,),)
    """
    if not adversarial or not models:
        raise InputError(
            f"got {len(adversarial)} sources and {len(models)} models: expected at least 1 of each"
        )
    for name, made in adversarial.items():
        if len(made) != len(pixels):
            raise InputError(
                f'got {len(made)} adversarial images against "{name}" for {len(pixels)} images: '
                "expected one for each"
            )
    classes = {name: model.classes for name, model in models.items()}
    if len(set(classes.values())) > 1:
        raise InputError(
            f"the models have different numbers of classes, {classes}: expected the same labels in "
            "the same order"
        )

    def measured(made: Tensor, model: Attackable) -> float:
        return accuracy(model, resized(made, model.size), targets, batch_size)

    everything = {"the images": pixels, **adversarial}
    strange = [
        name
        for name, model in models.items()
        if any(made.shape[2:] != model.size for made in everything.values())
    ]
    return Transfer(
        sources=tuple(adversarial),
        models=tuple(models),
        accuracies=tuple(
            tuple(measured(made, model) for model in models.values())
            for made in adversarial.values()
        ),
        clean=tuple(measured(pixels, model) for model in models.values()),
        n=len(pixels),
        note=f"resized to the input of {', '.join(strange)}" if strange else "",
    )


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (B, 3, h, w) as (B, 3, H, W), bilinearly; the same where the size is.

    Args:
        pixels: Pixels in [0, 1].
        size: (H, W).

    Example:
        >>> import torch
        >>> resized(torch.ones(1, 3, 4, 4), (8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    if tuple(pixels.shape[2:]) == size:
        return pixels
    scaled = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.clamp(0, 1)
