"""`inline`: visual tokens take the place of `<image>` in the text (LLaVA, Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.config.base import Config, NotNegative
from isthmus.config.registry import FUSIONS
from isthmus.errors import ConfigError
from isthmus.model.fusion.adapter import Adapter, SightAdapter
from isthmus.model.fusion.visual import Visual, joined
from isthmus.model.layout import Layout, filled

if TYPE_CHECKING:
    from isthmus.model.backbones.language import LanguageModel
    from isthmus.model.fusion.sight import Sight


def fill(embeddings: Tensor, is_image: Tensor, visual: Visual) -> Tensor:
    """Replaces the embeddings of holes by visual tokens.

    Args:
        embeddings: (B, L, D) embeddings of the text.
        is_image: (B, L) bool, True at as many places as there are visual tokens.
        visual: Visual tokens of the images in reading order.

    Returns:
        (B, L, D) in the precision of `embeddings`.
    """
    return embeddings.masked_scatter(is_image[..., None], joined(visual).to(embeddings.dtype))


class InlineFusion(nn.Module):
    """Puts visual tokens where `<image>` stands.

    The tag is written once per visual token before embedding, so positions and padding need no
    second book-keeping.

    Args:
        visual_width: Width of the visual tokens, the language model's.
        adapter: Adapters of the language model that act in sight of images.
        deepstack: How many times its width follows in a visual token, to be added behind as many
            decoder layers (`fusion.deepstack`).

    Attributes:
        visual_width, in_text, sees, blocks, adapter: As in `Fusion`.
    """

    in_text = True
    sees: Literal["nothing", "last", "previous"] = "nothing"

    def __init__(
        self, visual_width: int, adapter: SightAdapter | None = None, deepstack: int = 0
    ) -> None:
        super().__init__()
        self.visual_width = visual_width
        self.deepstack = deepstack
        self.adapter = adapter
        self.blocks = nn.ModuleDict()

    def layout(self, tokens: int) -> Layout:
        """One hole for each visual token."""
        return filled(tokens)

    def embed(self, embeddings: Tensor, is_image: Tensor, visual: Visual) -> Tensor:
        """Replaces the embeddings of the holes; see `fill`."""
        if self.deepstack:
            visual = joined(visual)[:, : embeddings.shape[-1]]
            return fill(embeddings, is_image, [visual])
        return fill(embeddings, is_image, visual)

    def look(self, visual: Visual, seen: Tensor, begin: Tensor, *, keep: bool) -> Sight | None:
        """Nothing: all there is to see stands in the text."""
        return None

    def hook(self, language: LanguageModel, sight: Sight) -> list[RemovableHandle]:
        """No hooks."""
        return []

    def project(self, visual: Tensor) -> object:
        """Nothing."""
        return None

    def gates(self) -> dict[str, dict[str, nn.Parameter]]:
        """None."""
        return {}

    def activation_bytes(self, tokens: int, visual_tokens: int, value: int) -> int:
        """None, beyond the language model's own."""
        return 0


@FUSIONS.register("inline")
@dataclass(frozen=True, kw_only=True)
class Inline(Config):
    """Early fusion: visual tokens take the place of `<image>` in the sequence (LLaVA)."""

    adapter: Adapter | None = None
    """Adapters of the language model that act where an image is in sight; None for none."""
    deepstack: NotNegative = 0
    """How many decoder layers have visual features added behind them, 3 in Qwen3-VL."""

    @property
    def added(self) -> str:
        """Adapters, or nothing: adding features behind layers is what Qwen3-VL's own class does."""
        return "" if self.adapter is None else "adapters that act in sight of images"

    def width(self, language_width: int, vision_width: int) -> int:
        """The language model's: inline tokens stand between words. With what is added behind it."""
        return language_width * (1 + self.deepstack)

    def build(self, language: LanguageModel, visual_width: int) -> InlineFusion:
        """The module."""
        adapter = None if self.adapter is None else self.adapter.build(language)
        if self.deepstack > len(language.layers):
            raise ConfigError(
                f"fusion: deepstack = {self.deepstack}: expected at most {len(language.layers)}, "
                "the language model's layers"
            )
        return InlineFusion(visual_width, adapter, self.deepstack)

    def toy(self) -> Inline:
        """The same, its adapter small, and nothing added behind layers."""
        adapter = None if self.adapter is None else self.adapter.toy()
        return replace(self, adapter=adapter, deepstack=0)
