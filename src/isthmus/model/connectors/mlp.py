"""`mlp`: linear layers with GELU between them, per patch (LLaVA-1.5, Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class MLPConnector(nn.Module):
    """A small MLP on every patch by itself.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens, and of the hidden layers.
        patches: Number of patches N, which is the number of visual tokens.
        depth: Number of linear layers, at least 1.
        bias: Whether they have a bias.

    Example:
        >>> import torch
        >>> MLPConnector(8, 6, 16, depth=3)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 16, 6])
    """

    def __init__(
        self, in_width: int, width: int, patches: int, *, depth: int = 2, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_tokens = patches
        self.width = width
        layers: list[nn.Module] = [nn.Linear(in_width, width, bias=bias)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width, bias=bias)]
        self.layers = nn.Sequential(*layers)

    def tokens_of(self, patches: int) -> int:
        """How many visual tokens an image of so many patches becomes."""
        return patches

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N, D) of features (B, N, D_vision)."""
        tokens: Tensor = self.layers(features)
        return tokens


@CONNECTORS.register("mlp")
@dataclass(frozen=True, kw_only=True)
class MLP(Config):
    """Linear layers with GELU between them per patch, M = N (LLaVA-1.5, Liu et al. 2023)."""

    depth: Count = 2
    """Number of linear layers."""
    bias: bool = True
    """Whether they have a bias."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> MLPConnector:
        """The module for features of a shape."""
        return MLPConnector(shape.width, width, shape.tokens, depth=self.depth, bias=self.bias)

    def toy(self) -> MLP:
        """The same connector, small."""
        return replace(self, depth=min(self.depth, 2))
