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
        features: (..., rows * columns, D).
        grid: (rows, columns), both divisible by `factor`.
        factor: Side of a square.

    Returns:
        (..., rows * columns / factor^2, factor^2 * D); within a vector the patches of a square
        follow each other row by row.
    """
    rows, columns = grid
    x = features.unflatten(-2, (rows // factor, factor, columns // factor, factor))  # type: ignore[no-untyped-call]
    x = x.transpose(-4, -3)  # (..., r, c, row in square, column in square, D)
    merged: Tensor = x.flatten(-3).flatten(-3, -2)
    return merged


def grid_of_squares(grid: tuple[int, int] | None, factor: int, name: str) -> tuple[int, int]:
    """The grid of patches, which squares of a side divide.

    Args:
        grid: (rows, columns); None if there is none.
        factor: Side of a square.
        name: The connector's, for messages.

    Raises:
        ConfigError: If there is no grid, or the factor does not divide it.
    """
    grid = require_grid(grid, name)
    if grid[0] % factor or grid[1] % factor:
        fits = [f for f in range(1, min(grid) + 1) if grid[0] % f == 0 and grid[1] % f == 0]
        raise ConfigError(
            f"{name}: factor={factor} does not divide the grid {grid[0]} x {grid[1]}; "
            f"these do: {', '.join(map(str, fits))}"
        )
    return grid


def squares_of(shape: FeatureShape, factor: int, connector: str) -> tuple[int, int] | None:
    """The grid that squares of patches are cut out of; None if they follow each other already.

    Args:
        shape: Shape of the features.
        factor: Side of a square.
        connector: Who asks, for messages.

    Raises:
        ConfigError: If there is neither, or the factor does not divide the grid.
    """
    if shape.native is not None:
        if factor not in (1, shape.native.merge):
            raise ConfigError(
                f"{connector}: factor={factor}: the patches of these images come in squares of "
                f"{shape.native.merge} x {shape.native.merge}: expected factor="
                f"{shape.native.merge}"
            )
        return None
    return grid_of_squares(shape.grid, factor, connector)


def squares(features: Tensor, grid: tuple[int, int] | None, factor: int) -> Tensor:
    """The patches of each square side by side, (B, N / factor^2, factor^2 * D), row by row.

    Args:
        features: (B, N, D), row by row; or square by square where there is no grid.
        grid: As `squares_of` gives it.
        factor: Side of a square.
    """
    if grid is not None:
        return space_to_depth(features, grid, factor)
    return features.reshape(*features.shape[:-2], -1, factor**2 * features.shape[-1])


class PixelShuffleConnector(nn.Module):
    """Space-to-depth and a linear map.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        factor: Side of the square that becomes one token.
        patches: Their number, where they stand square by square and have no grid.

    Raises:
        ConfigError: If there is no grid, or the factor does not divide it.

    Example:
        >>> PixelShuffleConnector(8, 6, (4, 6), factor=2).num_tokens
        6
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        grid: tuple[int, int] | None,
        *,
        factor: int = 2,
        patches: int | None = None,
    ) -> None:
        super().__init__()
        if patches is None:
            grid = grid_of_squares(grid, factor, "pixel_shuffle")
            patches = grid[0] * grid[1]
        self.grid, self.factor = grid, factor
        self.num_tokens = patches // factor**2
        self.width = width
        self.projection = nn.Linear(in_width * factor**2, width, bias=False)

    def tokens_of(self, patches: int) -> int:
        """How many visual tokens an image of so many patches becomes."""
        return patches // self.factor**2

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, N / factor^2, D) of features (B, N, D_vision)."""
        tokens: Tensor = self.projection(squares(features, self.grid, self.factor))
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """The patches of each square, in equal shares: (B, M, N)."""
        assert self.grid is not None  # only patches on a grid are asked for their shares
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
        grid = squares_of(shape, self.factor, "pixel_shuffle")
        patches = shape.tokens if grid is None else None
        return PixelShuffleConnector(shape.width, width, grid, factor=self.factor, patches=patches)

    def toy(self) -> PixelShuffle:
        """The same connector, small."""
        return self if self.factor in (1, 2, 4) else replace(self, factor=2)
