"""`linear`: one linear map per patch (LLaVA, Liu et al. 2023, equation 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isthmus.config.base import Config
from isthmus.config.registry import CONNECTORS

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class LinearConnector(nn.Module):
    """One linear map from the features' width to the language model's.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        patches: Number of patches N, which is the number of visual tokens.

    Example:
        >>> import torch
        >>> LinearConnector(8, 6, 16)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 16, 6])
    """

    def __init__(self, in_width: int, width: int, patches: int) -> None:
        super().__init__()
        self.num_tokens = patches
        self.width = width
        self.projection = nn.Linear(in_width, width)

    def tokens_of(self, patches: int) -> int:
        """How many visual tokens an image of so many patches becomes."""
        return patches

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N, D) of features (B, N, D_vision)."""
        tokens: Tensor = self.projection(features)
        return tokens


@CONNECTORS.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Config):
    """One linear map per patch, M = N (LLaVA, Liu et al. 2023)."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> LinearConnector:
        """The module for features of a shape."""
        return LinearConnector(shape.width, width, shape.tokens)
