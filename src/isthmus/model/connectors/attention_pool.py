"""`attention_pool`: learned queries, one attention layer over the patches, then an MLP.

The attentional pooling of MM1 (McKinzie et al. 2024, section 3.1) and CoCa (Yu et al. 2022).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class AttentionPoolConnector(nn.Module):
    """Learned queries that each gather one visual token.

    Args:
        in_width: Width of the features, a multiple of `heads`.
        width: Width of the visual tokens.
        tokens: Number of queries M.
        heads: Attention heads.

    Raises:
        ConfigError: If the heads do not divide the width.

    Example:
        >>> import torch
        >>> AttentionPoolConnector(8, 6, tokens=2, heads=2)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 2, 6])
    """

    def __init__(self, in_width: int, width: int, *, tokens: int = 16, heads: int = 8) -> None:
        super().__init__()
        if in_width % heads:
            raise ConfigError(f"attention_pool: heads={heads} must divide the width {in_width}")
        self.num_tokens = tokens
        self.width = width
        self.queries = nn.Parameter(torch.randn(tokens, in_width) * in_width**-0.5)
        self.norm = nn.LayerNorm(in_width)
        self.attention = MultiHeadAttention(
            in_width, in_width, heads=heads, head_dim=in_width // heads, bias=True
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(in_width), nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width)
        )

    def no_weight_decay(self) -> set[str]:
        """The queries: positions, and no maps."""
        return {"queries"}

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        queries = self.queries.expand(features.shape[0], -1, -1)
        tokens: Tensor = self.mlp(self.attention(queries, self.norm(features)))
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """The attention weights of each query over the patches, mean of the heads: (B, M, N)."""
        queries = self.queries.expand(features.shape[0], -1, -1)
        keys, _ = self.attention.project_context(self.norm(features))
        return self.attention.weights(queries, keys).mean(dim=1)


@CONNECTORS.register("attention_pool")
@dataclass(frozen=True, kw_only=True)
class AttentionPool(Config):
    """Learned queries, one attention layer over the patches, then an MLP."""

    tokens: Count = 16
    """Number of learned queries, that is visual tokens M."""
    heads: Count = 8
    """Attention heads."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> AttentionPoolConnector:
        """The module for features of a shape."""
        return AttentionPoolConnector(shape.width, width, **asdict(self))

    def toy(self) -> AttentionPool:
        """The same connector, small."""
        return replace(self, tokens=4, heads=2)
