"""`pool`: 2-D adaptive average pooling, then an MLP (DeCo, Yao et al. 2024, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.connectors.patch_shares import pooled

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


def square_side(tokens: int, connector: str) -> int:
    """Side of a square number of tokens.

    Args:
        tokens: The number.
        connector: Who asks, for the message.

    Raises:
        ConfigError: If it is no square number.

    Example:
        >>> square_side(144, "pool")
        12
    """
    side = math.isqrt(tokens)
    if tokens < 1 or side**2 != tokens:
        raise ConfigError(
            f"{connector}: tokens={tokens} is not a square number; near ones: {max(1, side) ** 2}, "
            f"{(side + 1) ** 2}"
        )
    return side


def require_grid(grid: tuple[int, int] | None, connector: str) -> tuple[int, int]:
    """The grid (rows, columns), where there is one.

    Args:
        grid: The grid of the features, or None.
        connector: Who asks, for the message.

    Raises:
        ConfigError: If the features have no grid.
    """
    if grid is None:
        raise ConfigError(
            f"{connector} needs patches on a grid: leave keep_cls off, and take an encoder whose "
            "images are all of one size"
        )
    return grid


class PoolConnector(nn.Module):
    """Averages the grid down to a smaller square, then maps each cell.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        tokens: Number of visual tokens M, a square number.

    Raises:
        ConfigError: If there is no grid or M is no square.

    Example:
        >>> import torch
        >>> PoolConnector(8, 6, (4, 4), tokens=4)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 4, 6])
    """

    def __init__(
        self, in_width: int, width: int, grid: tuple[int, int] | None, *, tokens: int = 64
    ) -> None:
        super().__init__()
        self.grid = require_grid(grid, "pool")
        self.side = square_side(tokens, "pool")
        self.num_tokens = tokens
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        grid = features.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        cells = F.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)
        tokens: Tensor = self.mlp(cells)
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """The patches of each cell, in equal shares: (B, M, N)."""
        shares = pooled(self.grid, (self.side, self.side)).to(features.device)
        return shares.expand(features.shape[0], -1, -1)


@CONNECTORS.register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(Config):
    """2-D adaptive average pooling, then a two-layer MLP (DeCo, Yao et al. 2024)."""

    tokens: Count = 64
    """Number of visual tokens M, a square number."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> PoolConnector:
        """The module for features of a shape."""
        return PoolConnector(shape.width, width, shape.grid, tokens=self.tokens)

    def toy(self) -> Pool:
        """The same connector, small."""
        return replace(self, tokens=4)
