"""What a training step minimises.

`language`: the language model's cross-entropy on what is learned of each sample.

`concepts`: the classifier of a concept bottleneck must find the answer among all answers, without
running the language model at all: hundreds of samples a second on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.data.samples import Sample, collate
from isthmus.errors import ConfigError
from isthmus.model.connectors.concept_bottleneck import ConceptBottleneckConnector
from isthmus.model.media.base import Attachment, Features, features_of, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.feed import TrainingItem

FILLER = "."
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


class Objective(Protocol):
    """How items become a loss."""

    def count(self, item: TrainingItem) -> int:
        """How many terms an item adds to the loss."""
        ...

    def losses(
        self, model: VisionLanguageModel, items: Sequence[TrainingItem], weights: Sequence[float]
    ) -> Iterator[Loss]:
        """Forward passes over items, each term of item i counting `weights[i]`."""
        ...


@dataclass(frozen=True)
class Language:
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
        """Learned tokens."""
        return sum(item.sample.learned)

    def losses(
        self, model: VisionLanguageModel, items: Sequence[TrainingItem], weights: Sequence[float]
    ) -> Iterator[Loss]:
        """One forward pass."""
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
                layout = model.layout
                image = layout.written(model.special_tokens.image_id)
                nothing = [False] * (len(image) + 1)
                samples.append(Sample([*image, model.pad_id], nothing, (layout,)))
                attachments.append(torch.zeros(3, *model.vision.image_size))
        collated = collate(model, samples, attachments, pack=self.pack)
        output = model(collated.weighted([*weights, 0.0]).to(model.device))
        assert output.token_losses is not None
        assert output.loss is not None
        yield Loss(output.loss, output.token_losses, collated.owner)


def _kind(attachment: Attachment) -> tuple[str, tuple[int, ...]]:
    """Attachments of one kind go through the same modules in one pass."""
    if isinstance(attachment, Features):
        return attachment.medium, tuple(attachment.values.shape)
    return "", tuple(attachment.shape)


def concept_bottleneck(model: VisionLanguageModel) -> ConceptBottleneckConnector:
    """The model's concept bottleneck.

    Raises:
        ConfigError: If it has another connector.
    """
    if not isinstance(model.connector, ConceptBottleneckConnector):
        raise ConfigError(
            'train.objective = "concepts" needs connector.type = "concept_bottleneck", '
            f"got {type(model.connector).__name__}"
        )
    return model.connector


def name_pieces(model: VisionLanguageModel, name: str) -> tuple[int, ...]:
    """A name's word pieces, cut or filled up with full stops to a concept's length."""
    length = concept_bottleneck(model).names.shape[1]
    filler = model.language.encode(FILLER)[:1]
    return tuple((model.language.encode(f" {name}") + filler * length)[:length])


def name_concepts(model: VisionLanguageModel, answers: Iterable[str]) -> None:
    """Gives the concept bottleneck one row for each different answer."""
    pieces = sorted({name_pieces(model, answer) for answer in answers})
    concept_bottleneck(model).set_names(pieces)


@dataclass(frozen=True)
class Concepts:
    """Cross-entropy of the classifier on the answers' concepts, of records with one image."""

    def count(self, item: TrainingItem) -> int:
        """One."""
        return 1

    def losses(
        self, model: VisionLanguageModel, items: Sequence[TrainingItem], weights: Sequence[float]
    ) -> Iterator[Loss]:
        """One pass over all items."""
        connector = concept_bottleneck(model)
        for item in items:
            if not item.attachments or medium_of(model, item.attachments[0]).name not in IMAGES:
                raise ConfigError(
                    f'{item}: a record without an image; train.objective = "concepts" needs one'
                )
        found = features_of(model, [item.attachments[0] for item in items])
        logits = torch.cat([connector.logits(features) for _, _, features in found])
        places = torch.tensor([number for _, numbers, _ in found for number in numbers])
        logits = logits[places.argsort()]
        rows = {tuple(name): i for i, name in enumerate(connector.names.tolist())}
        named = [rows.get(name_pieces(model, i.record.answer)) for i in items]
        if None in named:
            raise ConfigError(
                f"no concept is called {items[named.index(None)].record.answer!r}: the names were "
                "set by the model in train.init"
            )
        targets = torch.tensor(named, device=logits.device)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        total = (losses * torch.tensor(list(weights)).to(losses)).sum()
        yield Loss(total, losses.detach(), torch.arange(len(items)))
