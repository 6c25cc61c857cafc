"""`merger`: a norm, then squares of patches through a two-layer MLP, as in the Qwen-VL family.

Qwen2-VL (Wang et al. 2024, arXiv 2409.12191, section 2.1) puts a layer norm in front, Qwen2.5-VL
(Bai et al. 2025, arXiv 2502.13923, section 2.1) an RMS norm. Qwen3-VL (arXiv 2511.21631, section
2) reads earlier layers of its tower too, each through a merger whose norm stands behind the
merging (DeepStack, Meng et al. 2024, arXiv 2406.04334): the tokens of the last layer and of those
stand side by side in each visual token, for the fusion to part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from isthmus.config.base import Config, Count, NotNegative
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.connectors.pixel_shuffle import squares, squares_of

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape

Norm = Literal["layer", "rms"]
EPSILON = 1e-6


class PatchMerger(nn.Module):
    """One merger.

    Args:
        in_width: Width of a patch's features.
        width: Width of the tokens.
        square: Patches of a square.
        norm: Which norm.
        merged: Whether it stands behind the merging, over a whole square.
    """

    def __init__(
        self, in_width: int, width: int, square: int, *, norm: Norm, merged: bool = False
    ) -> None:
        super().__init__()
        inner = in_width * square
        make = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        self.merged = merged
        self.norm = make(inner if merged else in_width, eps=EPSILON)
        self.first = nn.Linear(inner, inner)
        self.second = nn.Linear(inner, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens (B, M, D) of squares (B, M, square, D_vision)."""
        merged = self.norm(patches.flatten(-2)) if self.merged else self.norm(patches).flatten(-2)
        tokens: Tensor = self.second(nn.functional.gelu(self.first(merged)))
        return tokens


class MergerConnector(nn.Module):
    """A merger for each layer that features are of.

    Args:
        shape: Shape of the features, those of all layers side by side.
        width: Width of the visual tokens, those of all layers side by side.
        factor: Side of the square that becomes one token.
        norm: Which norm.
        deepstack: How many earlier layers there are.

    Raises:
        ConfigError: If the features have no such squares, or widths cannot be parted.

    Example:
        >>> from isthmus.model.backbones.feature_shape import FeatureShape
        >>> MergerConnector(FeatureShape(8, 16, (4, 4)), 6)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 4, 6])
    """

    def __init__(
        self,
        shape: FeatureShape,
        width: int,
        *,
        factor: int = 2,
        norm: Norm = "layer",
        deepstack: int = 0,
    ) -> None:
        super().__init__()
        levels = 1 + deepstack
        if shape.width % levels or width % levels:
            raise ConfigError(
                f"merger: deepstack = {deepstack} needs features and tokens of {levels} layers "
                f"side by side, got widths {shape.width} and {width}: set vision.deepstack = true, "
                f"and deepstack = {deepstack} for the fusion inline too"
            )
        self.grid, self.factor = squares_of(shape, factor, "merger"), factor
        self.num_tokens = shape.tokens // factor**2
        self.width = width
        options = (shape.width // levels, width // levels, factor**2)
        self.last = PatchMerger(*options, norm=norm)
        self.earlier = nn.ModuleList(
            PatchMerger(*options, norm=norm, merged=True) for _ in range(deepstack)
        )

    def tokens_of(self, patches: int) -> int:
        """How many visual tokens an image of so many patches becomes."""
        return patches // self.factor**2

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N / factor^2, D) of features (B, N, D_vision)."""
        square = self.factor**2
        patches = squares(features, self.grid, self.factor).unflatten(-1, (square, -1))  # type: ignore[no-untyped-call]
        levels = patches.chunk(1 + len(self.earlier), dim=-1)
        mergers = (self.last, *self.earlier)
        return torch.cat([m(own) for m, own in zip(mergers, levels, strict=True)], dim=-1)


@CONNECTORS.register("merger")
@dataclass(frozen=True, kw_only=True)
class Merger(Config):
    """A norm, then squares of patches through an MLP, M = N / factor^2 (Qwen2-VL to Qwen3-VL)."""

    factor: Count = 2
    """Side of the square of neighbouring patches that become one token."""
    norm: Norm = "layer"
    """"layer" in Qwen2-VL and Qwen3-VL, "rms" in Qwen2.5-VL."""
    deepstack: NotNegative = 0
    """How many earlier layers' features stand beside the last one's, 3 in Qwen3-VL."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> MergerConnector:
        """The module for features of a shape."""
        return MergerConnector(
            shape, width, factor=self.factor, norm=self.norm, deepstack=self.deepstack
        )

    def toy(self) -> Merger:
        """The same connector, small."""
        small = self if self.factor in (1, 2, 4) else replace(self, factor=2)
        return replace(small, deepstack=0)
