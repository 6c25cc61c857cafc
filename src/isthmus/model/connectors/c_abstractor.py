"""`c_abstractor`: Honeybee's convolutional abstractor (Cha et al. 2024, section 3.2, figure 4).

Residual blocks on the grid, adaptive average pooling to M cells, residual blocks again, then an
MLP: tokens stay local, and their number is free. The blocks are RegNet bottlenecks with
squeeze-and-excitation (Radosavovic et al. 2020), SiLU and LayerNorm over the channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.connectors.patch_shares import pooled
from isthmus.model.connectors.pool import require_grid, square_side

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape

SQUEEZE = 4  # RegNet counts it from the width that enters the block


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map (B, D, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Weights channels by what the whole map says (Hu et al. 2018).

    Args:
        width: Channels of the map.
        squeezed: Channels of the bottleneck.
    """

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The weighted map (B, D, h, w)."""
        out: Tensor = x * self.weights(x)
        return out


class ResidualBlock(nn.Module):
    """1x1, depthwise 3x3, squeeze-and-excitation, 1x1, and the way past them.

    Args:
        in_width: Channels that come in.
        width: Channels that go out.
    """

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_width, width, 1, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            SqueezeExcite(width, max(1, round(in_width / SQUEEZE))),
            nn.Conv2d(width, width, 1, bias=False),
            ChannelNorm(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, bias=False), ChannelNorm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, D, h, w) of one (B, D_in, h, w)."""
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

    Example:
        >>> abstractor = CAbstractorConnector(8, 6, (4, 4), tokens=4, depth=1, hidden=16)
        >>> abstractor(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 4, 6])
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
        self.before = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.pool = nn.AdaptiveAvgPool2d(square_side(tokens, "c_abstractor"))
        self.after = nn.Sequential(*(ResidualBlock(hidden, hidden) for _ in range(depth)))
        self.mlp = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))

    def position_map(self, patches: int) -> Tensor:
        """The positional embedding as a map (1, D_vision, h, w) with h * w = patches.

        A square of another size than the grid it was built for, which a larger image gives,
        stretches the learned map by bicubic interpolation.

        Args:
            patches: Number of patches N.

        Raises:
            ConfigError: If N is neither the grid's number of patches nor a square number.
        """
        learned: Tensor = self.positions.T.unflatten(1, self.grid)[None]  # type: ignore[no-untyped-call]
        if patches == self.positions.shape[0]:
            return learned
        side = math.isqrt(patches)
        if side**2 != patches:
            raise ConfigError(
                f"c_abstractor: got {patches} patches, expected {self.grid[0]} x {self.grid[1]} "
                "or a square number of them"
            )
        return F.interpolate(learned, size=(side, side), mode="bicubic", align_corners=False)

    def no_weight_decay(self) -> set[str]:
        """The embeddings of positions."""
        return {"positions"}

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision).

        Raises:
            ConfigError: As `position_map`.
        """
        positions = self.position_map(features.shape[1])
        grid: Tensor = features.transpose(1, 2).unflatten(2, positions.shape[2:])  # type: ignore[no-untyped-call]
        cells = self.after(self.pool(self.before(grid + positions.to(features.dtype))))
        tokens: Tensor = self.mlp(cells.flatten(2).transpose(1, 2))
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """The patches that the cell of each token is pooled from: (B, M, N).

        The convolutions around the pooling see a little beyond them.

        Raises:
            ConfigError: As `position_map`.
        """
        rows, columns = self.position_map(features.shape[1]).shape[2:]
        side = square_side(self.num_tokens, "c_abstractor")
        shares = pooled((rows, columns), (side, side)).to(features.device)
        return shares.expand(features.shape[0], -1, -1)


@CONNECTORS.register("c_abstractor")
@dataclass(frozen=True, kw_only=True)
class CAbstractor(Config):
    """Convolutional abstractor (Honeybee, Cha et al. 2024, section 3.2)."""

    tokens: Count = 144
    """Number of visual tokens M, a square number."""
    depth: Count = 3
    """ResNet blocks before and again after the pooling."""
    hidden: Count = 1024
    """Channels of the convolutions."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> CAbstractorConnector:
        """The module for features of a shape."""
        return CAbstractorConnector(shape.width, width, shape.grid, **asdict(self))

    def toy(self) -> CAbstractor:
        """The same connector, small."""
        return replace(self, tokens=4, depth=1, hidden=16)
