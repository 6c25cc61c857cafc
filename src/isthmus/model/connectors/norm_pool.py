"""`norm_pool`: 2-D average pooling, an RMSNorm, a linear map without bias: Gemma 3's projector.

Gemma Team 2025 (arXiv 2503.19786, section 2.1): 4096 patches become 256 visual tokens. The norm
stands between the pooling and the map, and scales by 1 + weight, as all of Gemma's do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Amount, Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.connectors.pool import require_grid, square_side

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class NormPoolConnector(nn.Module):
    """Averages cells of the grid, scales each to a root mean square of 1, and maps it.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        tokens: Number of visual tokens M, a square number.
        eps: Added to the mean square.

    Raises:
        ConfigError: If there is no grid, M is no square, or its side does not divide the grid's.

    Example:
        >>> NormPoolConnector(8, 6, (4, 4), tokens=4)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 4, 6])
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        grid: tuple[int, int] | None,
        *,
        tokens: int = 256,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid = require_grid(grid, "norm_pool")
        side = square_side(tokens, "norm_pool")
        if self.grid[0] % side or self.grid[1] % side:
            raise ConfigError(
                f"norm_pool: {side} x {side} tokens of a grid of {self.grid[0]} x {self.grid[1]} "
                "patches: expected a side that divides the grid's"
            )
        self.cell = (self.grid[0] // side, self.grid[1] // side)
        self.num_tokens = tokens
        self.width = width
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(in_width))
        self.projection = nn.Linear(in_width, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        grid = features.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        cells = F.avg_pool2d(grid, self.cell).flatten(2).transpose(1, 2)
        wide = cells.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        wide = wide * (1 + self.scale.float())
        tokens: Tensor = self.projection(wide.type_as(cells))
        return tokens


@CONNECTORS.register("norm_pool")
@dataclass(frozen=True, kw_only=True)
class NormPool(Config):
    """2-D average pooling, an RMSNorm and a linear map, Gemma 3's (Gemma Team 2025)."""

    tokens: Count = 256
    """Number of visual tokens M, a square number."""
    eps: Amount = 1e-6
    """Added to the mean square of the norm."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> NormPoolConnector:
        """The module for features of a shape."""
        return NormPoolConnector(shape.width, width, shape.grid, tokens=self.tokens, eps=self.eps)

    def toy(self) -> NormPool:
        """The same connector, small."""
        return replace(self, tokens=4)
