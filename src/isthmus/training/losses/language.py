"""The language model's cross-entropy on what is learned of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.data.samples import Sample, collate
from isthmus.errors import ConfigError
from isthmus.model.media.base import Attachment, layouts_of, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.feed import TrainingItem

IMAGES = ("image", "clip")
"""Media that the vision encoder and the connector of the model read."""


@dataclass(frozen=True)
class Loss:
    """What a forward pass found.

    Attributes:
        total: Weighted sum over everything that is learned, a scalar with a gradient.
        losses: (T,) each learned token's own, unweighted and detached.
        owner: (T,) the number of the item it belongs to.
    """

    total: Tensor
    losses: Tensor
    owner: Tensor


@dataclass(frozen=True)
class LanguageLoss:
    """The language model's cross-entropy.

    Attributes:
        pack: Length of packed rows; 0 for one sample a row.
        always_images: Whether each forward pass must run the whole strip, so that processes that
            share its parameters stay together. An image that nobody looks at is added where there
            is none.
    """

    pack: int = 0
    always_images: bool = False

    def count(self, item: TrainingItem) -> int:
        """Learned tokens of an item."""
        return sum(item.sample.learned)

    def loss(
        self, model: VisionLanguageModel, items: Sequence[TrainingItem], weights: Sequence[float]
    ) -> Loss:
        """One forward pass over items, each learned token of item i counting `weights[i]`.

        Raises:
            ConfigError: If the strip must run whole and the items' media do not go through it in
                one pass.
        """
        samples = [item.sample for item in items]
        attachments = [own for item in items for own in item.attachments]
        if self.always_images:
            others = [own for own in attachments if medium_of(model, own).name not in IMAGES]
            if others or len({_kind(own) for own in attachments}) > 1:
                raise ConfigError(
                    'train.sharding = "fsdp" needs images of one kind in each forward pass: all '
                    "images, or all clips of one length"
                )
            if not attachments:
                blank = torch.zeros(3, *model.vision.image_size)
                attachments.append(medium_of(model, blank).open(model, blank))
                [layout] = layouts_of(model, attachments)
                image = layout.written(model.special_tokens.image_id)
                nothing = [False] * (len(image) + 1)
                samples.append(Sample([*image, model.pad_id], nothing, (layout,)))
        collated = collate(model, samples, attachments, pack=self.pack)
        output = model(collated.weighted([*weights, 0.0]).to(model.device))
        assert output.token_losses is not None
        assert output.loss is not None
        return Loss(output.loss, output.token_losses, collated.owner)


def _kind(attachment: Attachment) -> tuple[str, tuple[int, ...]]:
    """Attachments of one kind go through the same modules in one pass."""
    if isinstance(attachment, Tensor):
        return "", tuple(attachment.shape)
    return attachment.medium, tuple(attachment.values.shape)
