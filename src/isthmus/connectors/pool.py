"""`pool`: 2-D adaptive average pooling, then an MLP (DeCo, Yao et al. 2024, section 4)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import ConfigError


def square_side(tokens: int, connector: str) -> int:
    """Side of a square number of tokens.

    Raises:
        ConfigError: If it is none.
    """
    side = math.isqrt(tokens)
    if tokens < 1 or side**2 != tokens:
        raise ConfigError(
            f"{connector}: tokens={tokens} is no square number; near ones: {max(1, side) ** 2}, "
            f"{(side + 1) ** 2}"
        )
    return side


def require_grid(grid: tuple[int, int] | None, connector: str) -> tuple[int, int]:
    """The grid, or a ConfigError if there is none."""
    if grid is None:
        raise ConfigError(f"{connector} needs patches on a grid: leave keep_cls off")
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
