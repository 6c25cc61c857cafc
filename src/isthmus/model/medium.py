"""A medium: all that lies between a prompt's attachment and its visual tokens.

An attachment is whatever stands for `<image>`: an image, a clip, or something of your own, such as
a page in tiles or a sound. Its medium says how it is opened, which encoder reads it, how features
become visual tokens, and where these stand in the text. `VisionLanguageModel.media` holds a model's
media; the first that takes an attachment is its medium. Prompts, batches, both engines and their
caches know of no kind of attachment but through it.

Letters: P attachments of one shape, T frames, N patches and M visual tokens each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.errors import PromptError
from isthmus.media.image import open_image
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.fusion import Fusion
from isthmus.model.layout import Layout


class Parts(Protocol):
    """What a medium may use of a model."""

    vision: VisionEncoder
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
    """

    name: str
    varies: bool

    def takes(self, source: Any) -> bool:
        """Whether an attachment, or what `open` made of one, is of this medium."""
        ...

    def open(self, parts: Parts, source: Any) -> Tensor:
        """What the encoder reads; a tensor that was opened before is returned as it is.

        Raises:
            ImageError: If it cannot be read.
        """
        ...

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        """Features (P, ...) of attachments of one shape, (P, ...)."""
        ...

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        """Visual tokens (P, M, D_visual) of features."""
        ...

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        """Where an attachment stands in the text; of all alike if not `varies`, from None."""
        ...


def connected(parts: Parts, features: Tensor) -> Tensor:
    """Features through the connector, in its precision."""
    dtype = next(parts.connector.parameters(), features).dtype
    tokens: Tensor = parts.connector(features.to(dtype))
    return tokens


def fixed_layout(parts: Parts) -> Layout:
    """The layout of an attachment that the connector makes `num_tokens` visual tokens of."""
    return parts.fusion.layout(int(parts.connector.num_tokens))  # type: ignore[arg-type]


class ImageMedium:
    """Images: anything that `open_image` reads, or pixels (3, H, W)."""

    name = "image"
    varies = False

    def takes(self, source: Any) -> bool:
        """Whether it is one; what is no tensor and no sequence of others is taken for one."""
        if isinstance(source, Tensor):
            return source.ndim == 3
        return isinstance(source, (str, bytes, bytearray)) or not isinstance(source, Sequence)

    def open(self, parts: Parts, source: Any) -> Tensor:
        """Pixels (3, H, W)."""
        if isinstance(source, Tensor):
            return source
        image = source if isinstance(source, Image.Image) else open_image(source)
        return parts.vision.preprocess(image)

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        """Features (P, N, D_vision) of pixels (P, 3, H, W)."""
        features: Tensor = parts.vision(opened)
        return features

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        """The connector's."""
        return connected(parts, features)

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        """The fusion's, for the connector's number of tokens."""
        return fixed_layout(parts)


class ClipMedium(ImageMedium):
    """Clips: a sequence of images, or pixels (T, 3, H, W)."""

    name = "clip"

    def takes(self, source: Any) -> bool:
        """Whether it is one."""
        if isinstance(source, Tensor):
            return source.ndim == 4
        return isinstance(source, (tuple, list))

    def open(self, parts: Parts, source: Any) -> Tensor:
        """Pixels (T, 3, H, W)."""
        if isinstance(source, Tensor):
            return source
        return torch.stack([super(ClipMedium, self).open(parts, frame) for frame in source])

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        """Features (P, T, N, D_vision) of pixels (P, T, 3, H, W)."""
        features: Tensor = parts.vision(opened.flatten(0, 1))
        return features.view(*opened.shape[:2], *features.shape[1:])


def medium_of(parts: Parts, source: Any) -> Medium:
    """The medium of an attachment, or of what it was opened to.

    Raises:
        PromptError: If there is none.
    """
    for medium in parts.media:
        if medium.takes(source):
            return medium
    shape = f" {tuple(source.shape)}" if isinstance(source, Tensor) else ""
    names = ", ".join(medium.name for medium in parts.media)
    raise PromptError(f"a {type(source).__name__}{shape} is of no known medium ({names})")


def layouts_of(parts: Parts, sources: Sequence[Any]) -> list[Layout]:
    """The layout of each attachment; only media that vary open theirs.

    Raises:
        ImageError: If one has to be opened and cannot be.
        PromptError: If one is of no known medium.
    """
    found = []
    for source in sources:
        medium = medium_of(parts, source)
        opened = medium.open(parts, source) if medium.varies else None
        found.append(medium.layout(parts, opened))
    return found


def visual_of(parts: Parts, opened: Iterable[Tensor]) -> list[Tensor]:
    """Visual tokens (M_i, D_visual) of opened attachments, those of one shape in one pass."""
    groups: dict[tuple[int, torch.Size], list[tuple[int, Tensor]]] = {}
    for number, own in enumerate(opened):
        key = (parts.media.index(medium_of(parts, own)), own.shape)
        groups.setdefault(key, []).append((number, own))
    found: dict[int, Tensor] = {}
    for (place, _), members in groups.items():
        medium = parts.media[place]
        together = torch.stack([own for _, own in members]).to(parts.device)
        tokens = medium.connect(parts, medium.features(parts, together))
        found |= dict(zip((number for number, _ in members), tokens, strict=True))
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
