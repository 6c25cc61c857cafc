"""What a fusion must have, and what its configuration must have.

A fusion decides where visual tokens meet the text. It stands in a file of its own, with the module,
its configuration (a frozen dataclass that is registered by name) and that configuration at toy
size. Nothing else in the package asks what kind of fusion it has; it asks the fusion.

Letters: B rows of the batch, L tokens a row, P images in the whole batch, M visual tokens an image,
D the language model's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.model.fusion.visual import Visual
from isthmus.model.layout import Layout

if TYPE_CHECKING:
    from isthmus.model.backbones.language import LanguageModel
    from isthmus.model.fusion.adapter import SightAdapter
    from isthmus.model.fusion.sight import Sight


@runtime_checkable
class Fusion(Protocol):
    """A module (`nn.Module`) that joins visual tokens and text.

    A fusion holds no hook, no image and no reference to a language model between forward passes.
    So models with it can be copied and pickled, and several can share a language model.

    Attributes:
        visual_width: The width that visual tokens must have.
        in_text: Whether visual tokens stand in the text.
        sees: What a token sees besides the text: "nothing"; the "last" image before it; or all
            "previous" images.
        blocks: The modules that run inside the language model, by the number of the decoder layer
            they stand before; empty where there are none. Each is gathered by itself when a
            model is sharded.
        adapter: Adapters of the language model that act where an image is in sight; None for none.
    """

    visual_width: int
    in_text: bool
    sees: Literal["nothing", "last", "previous"]
    blocks: Mapping[str, nn.Module]
    adapter: SightAdapter | None

    def layout(self, tokens: int) -> Layout:
        """Where an image of so many visual tokens stands in the text, nothing between them."""
        ...

    def embed(self, embeddings: Tensor, is_image: Tensor, visual: Visual) -> Tensor:
        """The language model's input embeddings (B, L, D), visual tokens put in.

        Args:
            embeddings: (B, L, D) embeddings of the text.
            is_image: (B, L) bool, the places of all images.
            visual: The visual tokens of the images, in reading order.
        """
        ...

    def look(self, visual: Visual, seen: Tensor, begin: Tensor, *, keep: bool) -> Sight | None:
        """What the blocks are to see; None if nothing.

        Args:
            visual: The visual tokens of the images.
            seen: (B, L) as `sight.image_of_token` gives it.
            begin: (B, L) as `sight.first_image` gives it.
            keep: Whether tokens will be decoded, so that what is computed of an image is kept.
        """
        ...

    def hook(self, language: LanguageModel, sight: Sight) -> list[RemovableHandle]:
        """Puts what `look` returned in sight of a language model, until the hooks are removed."""
        ...

    def project(self, visual: Tensor) -> object:
        """What is computed once for each image, of visual tokens (P, M, D_visual)."""
        ...

    def gates(self) -> dict[str, dict[str, nn.Parameter]]:
        """Gates before their tanh, by block and name, for logs; empty if there are none."""
        ...

    def activation_bytes(self, tokens: int, visual_tokens: int, value: int) -> int:
        """Bytes that all blocks keep for the backward pass.

        Args:
            tokens: Tokens of all rows.
            visual_tokens: Visual tokens of all images.
            value: Bytes of a value in the run's precision.
        """
        ...


class FusionConfig(Protocol):
    """The configuration of a fusion: a frozen dataclass, registered in `registry.FUSIONS`.

    One of your own need not be registered: it is passed to `compose`, or named
    "package.module:Class" in a configuration file. It may have a property `added`: what it adds to
    the language model, in words, and empty where that stays as it is. Without one it is not
    exported.
    """

    def width(self, language_width: int, vision_width: int) -> int:
        """The width that visual tokens must have."""
        ...

    def build(self, language: LanguageModel, visual_width: int) -> Any:
        """The module, which fits `Fusion`."""
        ...

    def toy(self) -> FusionConfig:
        """The same fusion, small, for "tiny-lm" (4 layers, 64 wide)."""
        ...
