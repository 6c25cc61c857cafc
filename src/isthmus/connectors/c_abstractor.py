"""`c_abstractor`: Honeybee's convolutional abstractor (Cha et al. 2024, section 3.2, figure 4).

Residual blocks on the grid, adaptive average pooling to M cells, residual blocks again, then an
MLP: tokens stay local, and their number is free. The blocks are RegNet bottlenecks with
squeeze-and-excitation (Radosavovic et al. 2020), SiLU and LayerNorm over the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.connectors.pool import require_grid, square_side

SQUEEZE = 4


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Weights channels by what the whole map says (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // SQUEEZE, 1),
            nn.SiLU(),
            nn.Conv2d(width // SQUEEZE, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The weighted map (B, D, h, w)."""
        out: Tensor = x * self.weights(x)
        return out


class ResidualBlock(nn.Module):
    """1x1, depthwise 3x3, squeeze-and-excitation, 1x1, and the way past them."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_width, width, 1, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            SqueezeExcite(width),
            nn.Conv2d(width, width, 1, bias=False),
            ChannelNorm(width),
        )
        self.shortcut = (
            nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, D, h, w)."""
        return F.silu(self.shortcut(x) + self.branch(x))


class CAbstractorConnector(nn.Module):
    """Convolution, pooling, convolution, MLP.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        grid: (rows, columns) of the patches.
        tokens: Number of visual tokens M, a square number.
        depth: Residual blocks before and again after the pooling.
        hidden: Width of the blocks.

    Raises:
        ConfigError: If there is no grid or M is no square.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        grid: tuple[int, int] | None,
        *,
        tokens: int = 144,
        depth: int = 3,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.grid = require_grid(grid, "c_abstractor")
        self.num_tokens = tokens
        self.width = width
        self.positions = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], in_width) * 0.02)
        widths = [in_width, *[hidden] * depth]
        self.before = nn.Sequential(
            *(ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(square_side(tokens, "c_abstractor"))
        self.after = nn.Sequential(*(ResidualBlock(hidden, hidden) for _ in range(depth)))
        self.mlp = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        placed = features + self.positions.to(features.dtype)
        grid = placed.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        cells = self.after(self.pool(self.before(grid)))
        tokens: Tensor = self.mlp(cells.flatten(2).transpose(1, 2))
        return tokens
