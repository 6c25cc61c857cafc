"""`pixel_shuffle`: neighbouring patches become channels of one token.

Space-to-depth by a factor, then one bias-free linear map, as in Idefics3 (Laurençon et al. 2024,
section 3.1), SmolVLM and nanoVLM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.connectors.patch_shares import pooled
from isthmus.model.connectors.pool import require_grid

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


def space_to_depth(features: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Squares of factor x factor patches as one vector each, in Idefics3's channel order.

    Args:
        features: (B, rows * columns, D).
        grid: (rows, columns), both divisible by `factor`.
        factor: Side of a square.

    Returns:
        (B, rows * columns / factor^2, factor^2 * D); within a vector the patches of a square
        follow each other row by row.
    """
    rows, columns = grid
    x = features.unflatten(1, (rows // factor, factor, columns // factor, factor))  # type: ignore[no-untyped-call]
    x = x.permute(0, 1, 3, 2, 4, 5)  # (B, r, c, row in square, column in square, D)
    merged: Tensor = x.flatten(3).flatten(1, 2)
    return merged


class PixelShuffleConnector(nn.Module):
    """Space-to-depth and a linear map.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        factor: Side of the square that becomes one token.

    Raises:
        ConfigError: If there is no grid, or the factor does not divide it.

    Example:
        >>> PixelShuffleConnector(8, 6, (4, 6), factor=2).num_tokens
        6
    """

    def __init__(
        self, in_width: int, width: int, grid: tuple[int, int] | None, *, factor: int = 2
    ) -> None:
        super().__init__()
        grid = require_grid(grid, "pixel_shuffle")
        if grid[0] % factor or grid[1] % factor:
            fits = [f for f in range(1, min(grid) + 1) if grid[0] % f == 0 and grid[1] % f == 0]
            raise ConfigError(
                f"pixel_shuffle: factor={factor} does not divide the grid {grid[0]} x {grid[1]}; "
                f"these do: {', '.join(map(str, fits))}"
            )
        self.grid, self.factor = grid, factor
        self.num_tokens = grid[0] * grid[1] // factor**2
        self.width = width
        self.projection = nn.Linear(in_width * factor**2, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N / factor^2, D) of features (B, N, D_vision)."""
        tokens: Tensor = self.projection(space_to_depth(features, self.grid, self.factor))
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """The patches of each square, in equal shares: (B, M, N)."""
        squares = (self.grid[0] // self.factor, self.grid[1] // self.factor)
        return pooled(self.grid, squares).to(features.device).expand(features.shape[0], -1, -1)


@CONNECTORS.register("pixel_shuffle")
@dataclass(frozen=True, kw_only=True)
class PixelShuffle(Config):
    """Space-to-depth, then one linear map: M = N / factor^2 (Idefics3, nanoVLM)."""

    factor: Count = 2
    """Side of the square of neighbouring patches that become one token."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> PixelShuffleConnector:
        """The module for features of a shape."""
        return PixelShuffleConnector(shape.width, width, shape.grid, factor=self.factor)

    def toy(self) -> PixelShuffle:
        """The same connector, small."""
        return self if self.factor in (1, 2, 4) else replace(self, factor=2)
