"""A medium: all that lies between a prompt's attachment and its visual tokens.

An attachment is whatever stands for `<image>`: an image, a clip, or something of your own, such as
a page in tiles or a sound. Its medium says how it is opened, which encoder reads it, what a cache
keeps of it, how features become visual tokens, and where these stand in the text.
`VisionLanguageModel.media` holds a model's media; the first that takes an attachment is its medium.
Prompts, batches, training, the engine and its caches know of no kind of attachment but through it.
What needs no model, such as its tag and the names it has in files, is its kind (`media.kinds`).

Letters: P attachments of one shape, T frames, N patches and M visual tokens each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isthmus.config.model import ModelConfig
from isthmus.errors import PromptError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.special_tokens import SpecialTokens
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.features import Encoding, PieceEncoding
from isthmus.model.fusion import Fusion
from isthmus.model.layout import Layout


class Parts(Protocol):
    """What a medium may use of a model."""

    config: ModelConfig
    vision: VisionEncoder
    language: LanguageModel
    special_tokens: SpecialTokens
    connector: nn.Module
    fusion: Fusion
    media: list[Medium]

    @property
    def device(self) -> torch.device:
        """Where the encoders' inputs must be."""
        ...


@runtime_checkable
class Medium(Protocol):
    """What lies between an attachment and its visual tokens.

    A medium that is an `nn.Module` becomes a submodule of its model: it moves, is copied and is
    trained with it.

    Attributes:
        name: What messages call it.
        varies: Whether two attachments may differ in their layout. It is then opened before its
            prompt is tokenized.

    What is trained of it and what is frozen: a submodule called `encoder` is frozen, and known by a
    fingerprint in checkpoints; everything else of it is saved with the model.
    """

    name: str
    varies: bool

    def takes(self, source: Any) -> bool:
        """Whether an attachment, or what `open` made of one, is of this medium.

        Of data sets come `FileRef`, and tuples of these; `FileRef.kind` says what one is.
        """
        ...

    def open(self, parts: Parts, source: Any) -> Tensor | Opened:
        """What the encoder reads; what was opened before is returned as it is.

        An `Opened` says besides what the shape of a tensor does not tell, such as a grid of tiles.

        Raises:
            MediaError: If it cannot be read.
        """
        ...

    def encoding(self, parts: Parts) -> Encoding | None:
        """What a feature cache keeps of an attachment; None if features are not to be kept.

        Of a tuple it keeps each member. Features of one encoding all have one shape.
        """
        ...

    def features(self, parts: Parts, opened: Any) -> Tensor:
        """Features (P, ...) of attachments of one shape, (P, ...).

        If `open` makes an `Opened`, they come as one, of those of which the same is told.
        """
        ...

    def connect(self, parts: Parts, features: Any) -> Tensor:
        """Visual tokens (P, M, D_visual) of features, which come as an `Opened` likewise."""
        ...

    def layout(self, parts: Parts, opened: Any) -> Layout:
        """Where an attachment stands in the text; of all alike if not `varies`, from None."""
        ...


@runtime_checkable
class Cheaper(Protocol):
    """A medium that can show an attachment at less cost, as an image that is not cut into tiles."""

    def open_low(self, parts: Parts, source: Any) -> Tensor | Opened:
        """As `Medium.open`, at the least cost; what was opened before is returned as it is."""
        ...


@runtime_checkable
class Ranging(Protocol):
    """A medium that varies and knows between which bounds."""

    def usual(self, parts: Parts) -> Layout:
        """The layout of an attachment as they mostly are."""
        ...

    def largest(self, parts: Parts) -> Layout:
        """The longest layout that an attachment can have."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """A medium that varies, of whose attachments a cache keeps piece by piece, such as tiles."""

    def pieces(self, parts: Parts) -> PieceEncoding:
        """What it keeps."""
        ...


@dataclass(frozen=True)
class Opened:
    """What a medium opened an attachment to, where the shape alone does not tell its layout.

    Attributes:
        medium: The name of its medium.
        values: What the encoder reads of one attachment; or of P that agree, (P, ...), or their
            features.
        told: What else has to be known of it, such as rows and columns of tiles.
    """

    medium: str
    values: Tensor
    told: tuple[int, ...]


@dataclass(frozen=True)
class Features:
    """Features of an attachment that were computed before, in place of what `open` makes of it.

    Attributes:
        medium: The name of its medium.
        values: (N, D), or for clips and pieces (T, N, D).
        told: As in `Opened`; None where nothing is.
    """

    medium: str
    values: Tensor
    told: tuple[int, ...] | None = None


Attachment = Tensor | Opened | Features
"""An attachment on its way into a batch: opened, or with its features known."""


def connected(parts: Parts, features: Tensor) -> Tensor:
    """Features through the connector, in its precision.

    Raises:
        PromptError: If it keeps the frames of clips apart.
    """
    dtype = next(parts.connector.parameters(), features).dtype
    tokens: Tensor = parts.connector(features.to(dtype))
    if tokens.ndim != 3:  # frames would be taken for visual tokens, or all but one left out
        raise PromptError(
            f"a clip of {features.shape[1]} frames became visual tokens of shape "
            f"{tuple(tokens.shape[1:])}: expected (tokens, width); take a connector that reads "
            "clips, such as resampler with max_frames, or give the frames as images of their own"
        )
    return tokens


def fixed_layout(parts: Parts) -> Layout:
    """The layout of an attachment that the connector makes `num_tokens` visual tokens of."""
    layout = parts.fusion.layout(int(parts.connector.num_tokens))  # type: ignore[arg-type]
    own = parts.config.tokens
    return layout if own is None else Layout((*own.before, *layout.ids, *own.after))


def medium_of(parts: Parts, source: Any) -> Medium:
    """The medium of an attachment, of what it was opened to, or of its features.

    Raises:
        PromptError: If there is none.
    """
    if isinstance(source, Features | Opened):
        named = [medium for medium in parts.media if medium.name == source.medium]
        if named:
            return named[0]
    else:
        for medium in parts.media:
            if medium.takes(source):
                return medium
    shape = f" {tuple(source.shape)}" if isinstance(source, Tensor) else ""
    shape = f' of "{source.medium}"' if isinstance(source, Features | Opened) else shape
    shape = f" of the kind {source.kind}" if isinstance(source, FileRef) else shape
    names = ", ".join(medium.name for medium in parts.media)
    article = "an" if isinstance(source, Opened) else "a"
    raise PromptError(f"{article} {type(source).__name__}{shape} is of no known medium ({names})")


def layouts_of(parts: Parts, sources: Sequence[Any]) -> list[Layout]:
    """The layout of each attachment; only media that vary open theirs.

    Raises:
        MediaError: If one has to be opened and cannot be.
        PromptError: If one is of no known medium.
    """
    found = []
    for source in sources:
        medium = medium_of(parts, source)
        known = isinstance(source, Features)
        opened = (source if known else medium.open(parts, source)) if medium.varies else None
        found.append(medium.layout(parts, opened))
    return found


def features_of(
    parts: Parts, attachments: Iterable[Attachment]
) -> list[tuple[Medium, list[int], Any]]:
    """Features of attachments, those of one medium that agree in one pass.

    Returns:
        For each such group its medium, the numbers of its attachments, and features (P, ...) as
        `Medium.connect` takes them.
    """
    groups: dict[tuple[int, bool, torch.Size, tuple[int, ...] | None], list[tuple[int, Tensor]]]
    groups = {}
    for number, own in enumerate(attachments):
        medium = medium_of(parts, own)
        known = isinstance(own, Features)
        if isinstance(own, Tensor):  # pixels that nobody opened, if its medium says more of them
            own = medium.open(parts, own)
        values = own if isinstance(own, Tensor) else own.values
        told = None if isinstance(own, Tensor) else own.told
        key = (parts.media.index(medium), known, values.shape, told)
        groups.setdefault(key, []).append((number, values))
    found: list[tuple[Medium, list[int], Any]] = []
    for (place, known, _, told), members in groups.items():
        medium = parts.media[place]
        stack = torch.stack([values for _, values in members]).to(parts.device)
        opened = stack if told is None else Opened(medium.name, stack, told)
        features: Any = stack if known else medium.features(parts, opened)
        if isinstance(opened, Opened):
            features = replace(opened, values=features)
        found.append((medium, [number for number, _ in members], features))
    return found


def visual_of(parts: Parts, attachments: Iterable[Attachment]) -> list[Tensor]:
    """Visual tokens (M_i, D_visual) of attachments, those of one shape in one pass."""
    found: dict[int, Tensor] = {}
    for medium, numbers, features in features_of(parts, attachments):
        found |= dict(zip(numbers, medium.connect(parts, features), strict=True))
    return [found[number] for number in range(len(found))]


def stacked(tensors: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Tensors as one, if they are of one shape.

    Example:
        >>> stacked([torch.zeros(2), torch.zeros(2)]).shape
        torch.Size([2, 2])
    """
    if len({t.shape for t in tensors}) == 1:
        return torch.stack(list(tensors))
    return tuple(tensors)


def together(attachments: Sequence[Attachment]) -> Tensor | tuple[Attachment, ...]:
    """Attachments as a batch holds them: one tensor, if all are tensors of one shape.

    Example:
        >>> together([torch.zeros(2), Opened("tiles", torch.zeros(2), (1, 2))])[1].told
        (1, 2)
    """
    plain = [own for own in attachments if isinstance(own, Tensor)]
    return stacked(plain) if len(plain) == len(attachments) else tuple(attachments)
