"""`qformer`: BLIP-2's Querying Transformer, queries only (Li et al. 2023, section 3.1).

A BERT-like encoder over learned queries; every `cross_every`-th layer also attends to the patches.
The text side, which BLIP-2 drops after its first stage, is left out. BLIP-2 starts from BERT and
trains a first stage of its own: from random weights this is an architecture, not BLIP-2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention
from isthmus.model.connectors.patch_shares import rollout

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape

EPSILON = 1e-12  # BERT's


class Sublayer(nn.Module):
    """Attention with BERT's residual and post-norm."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            width, context_width, heads=heads, head_dim=width // heads, bias=True
        )
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries (B, M, D) after reading a context (B, C, D_context)."""
        out: Tensor = self.norm(queries + self.attention(queries, context))
        return out

    def weights(self, queries: Tensor, context: Tensor) -> Tensor:
        """The attention weights (B, M, C), mean of the heads."""
        keys, _ = self.attention.project_context(context)
        return self.attention.weights(queries, keys).mean(dim=1)


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention in some layers, feed-forward."""

    def __init__(self, width: int, in_width: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.self_attention = Sublayer(width, width, heads)
        self.cross_attention = Sublayer(width, in_width, heads) if cross else None
        self.ffw = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """New queries (B, M, D)."""
        queries = self.self_attention(queries, queries)
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, features)
        out: Tensor = self.norm(queries + self.ffw(queries))
        return out


class QFormerConnector(nn.Module):
    """A Q-Former and the linear map to the language model.

    Args:
        in_width: Width of the features.
        width: Width of the visual tokens.
        queries: Number of queries, that is visual tokens M.
        depth: Number of layers.
        heads: Attention heads.
        hidden: Width inside.
        cross_every: Cross-attention stands in layers 0, cross_every, 2 cross_every, ...

    Raises:
        ConfigError: If the heads do not divide the hidden width.

    Example:
        >>> import torch
        >>> qformer = QFormerConnector(8, 6, queries=3, depth=2, heads=2, hidden=4)
        >>> qformer(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 3, 6])
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        queries: int = 32,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 768,
        cross_every: int = 2,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"qformer: heads={heads} must divide the width {hidden}")
        self.num_tokens = queries
        self.width = width
        self.queries = nn.Parameter(torch.randn(queries, hidden) * 0.02)
        self.input_norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.layers = nn.ModuleList(
            QFormerLayer(hidden, in_width, heads, cross=i % cross_every == 0) for i in range(depth)
        )
        self.projection = nn.Linear(hidden, width)

    def no_weight_decay(self) -> set[str]:
        """The queries: positions, and no maps."""
        return {"queries"}

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        queries = self.input_norm(self.queries).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        tokens: Tensor = self.projection(queries)
        return tokens

    def patch_shares(self, features: Tensor) -> Tensor:
        """How much each query has from each patch, through all layers: (B, M, N).

        See `patch_shares.rollout`: a layer's attention over the queries, and where it has one, its
        attention over the patches.
        """
        patches, found = features.shape[1], []
        queries = self.input_norm(self.queries).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            assert isinstance(layer, QFormerLayer)
            own = layer.self_attention
            among = own.weights(queries, queries)
            found.append(F.pad(among, (patches, 0)))
            if layer.cross_attention is not None:
                across = layer.cross_attention.weights(own(queries, queries), features)
                found.append(F.pad(across, (0, queries.shape[1])))
            queries = layer(queries, features)
        return rollout(found)


@CONNECTORS.register("qformer")
@dataclass(frozen=True, kw_only=True)
class QFormer(Config):
    """Querying Transformer (BLIP-2, Li et al. 2023, section 3.1), queries only."""

    queries: Count = 32
    """Number of queries, that is visual tokens M."""
    depth: Count = 12
    """Number of layers."""
    heads: Count = 12
    """Attention heads of each layer."""
    width: Count = 768
    """Hidden width inside the Q-Former."""
    cross_every: Count = 2
    """Cross-attention stands in every cross_every-th layer, from the first."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> QFormerConnector:
        """The module for features of a shape."""
        return QFormerConnector(
            shape.width,
            width,
            queries=self.queries,
            depth=self.depth,
            heads=self.heads,
            hidden=self.width,
            cross_every=self.cross_every,
        )

    def toy(self) -> QFormer:
        """The same connector, small."""
        return replace(
            self,
            queries=4,
            depth=min(self.depth, 2),
            heads=2,
            width=16,
            cross_every=min(self.cross_every, 2),
        )
