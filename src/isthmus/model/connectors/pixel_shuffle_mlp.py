"""`pixel_shuffle_mlp`: neighbouring patches become channels of one token, then an MLP.

Space-to-depth, a layer norm, and two linear maps with a GELU between them, as in InternVL (Chen et
al. 2024, arXiv 2404.16821, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.model.connectors.pixel_shuffle import grid_of_squares, space_to_depth

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class PixelShuffleMLPConnector(nn.Module):
    """Space-to-depth, a layer norm and two linear maps.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        factor: Side of the square that becomes one token.

    Raises:
        ConfigError: If there is no grid, or the factor does not divide it.

    Example:
        >>> PixelShuffleMLPConnector(8, 6, (4, 6), factor=2).num_tokens
        6
    """

    def __init__(
        self, in_width: int, width: int, grid: tuple[int, int] | None, *, factor: int = 2
    ) -> None:
        super().__init__()
        self.grid, self.factor = grid_of_squares(grid, factor, "pixel_shuffle_mlp"), factor
        self.num_tokens = self.grid[0] * self.grid[1] // factor**2
        self.width = width
        self.norm = nn.LayerNorm(in_width * factor**2)
        self.first = nn.Linear(in_width * factor**2, width)
        self.last = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N / factor^2, D) of features (B, N, D_vision)."""
        merged = space_to_depth(features, self.grid, self.factor)
        tokens: Tensor = self.last(nn.functional.gelu(self.first(self.norm(merged))))
        return tokens


@CONNECTORS.register("pixel_shuffle_mlp")
@dataclass(frozen=True, kw_only=True)
class PixelShuffleMLP(Config):
    """Space-to-depth, a layer norm and an MLP: M = N / factor^2 (InternVL)."""

    factor: Count = 2
    """Side of the square of neighbouring patches that become one token."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> PixelShuffleMLPConnector:
        """The module for features of a shape."""
        return PixelShuffleMLPConnector(shape.width, width, shape.grid, factor=self.factor)

    def toy(self) -> PixelShuffleMLP:
        """The same connector, small."""
        return self if self.factor in (1, 2, 4) else replace(self, factor=2)
