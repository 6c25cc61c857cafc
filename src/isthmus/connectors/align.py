"""`align`: visual tokens that are weighted averages of the language model's own words.

AlignVLM, Masry et al. 2025 (arXiv 2502.01341), section 3.2: features become a distribution over
the vocabulary, and the visual token is the expected embedding under it,

    P = softmax(scale * u E^T),   token = P E.

Such tokens lie in the convex hull of the word embeddings, where a frozen language model can read
them from the first step. Here learned queries gather the patches first, so that M is free, and the
softmax may be restricted to the words that a task uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.attention import MultiHeadAttention
from isthmus.errors import ConfigError


class AlignConnector(nn.Module):
    """Learned queries, an MLP, and the expected word embedding.

    Each query attends over the patches and over their mean; the mean also goes past the attention
    straight into the MLP, since what a whole picture shows is mostly in it.

    Args:
        in_width: Width of the features.
        tokens: Number of visual tokens M.
        patches: Number of patches N, for the positional embedding.
        embeddings: (V, D) the language model's word embeddings; kept frozen and never saved.
        heads: Attention heads.
        hidden: Width of attention and MLP.
        free: How many of the M tokens, the last ones, are plain vectors.

    Attributes:
        vocabulary: (V',) ids that the softmax ranges over; saved with the weights.

    Raises:
        ConfigError: If `free` is not below `tokens`, or heads do not divide the width.
    """

    embeddings: Tensor
    vocabulary: Tensor

    def __init__(
        self,
        in_width: int,
        tokens: int,
        patches: int,
        embeddings: Tensor,
        *,
        heads: int = 8,
        hidden: int = 1024,
        free: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= free < tokens or hidden % heads:
            raise ConfigError(
                f"connector: free={free} must lie below tokens={tokens}, and heads={heads} must "
                f"divide hidden={hidden}"
            )
        self.num_tokens = tokens
        self.width = embeddings.shape[1]
        self.free = free
        self.positions = nn.Parameter(torch.randn(patches, hidden) * 0.02)
        self.queries = nn.Parameter(torch.randn(tokens, hidden) * 0.02)
        self.norm = nn.LayerNorm(in_width)
        self.input_projection = nn.Linear(in_width, hidden)
        self.attention = MultiHeadAttention(
            hidden, hidden, heads=heads, head_dim=hidden // heads, bias=True
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(2 * hidden),
            nn.Linear(2 * hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.width),
        )
        self.out_norm = nn.LayerNorm(self.width)
        # logits of unit scale at first: u has unit variance, E's rows a norm of `spread`
        spread = float(embeddings.detach().float().norm(dim=-1).median())
        self.log_scale = nn.Parameter(torch.tensor(-math.log(spread)))
        self.spread = spread / math.sqrt(self.width)
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        self.register_buffer("vocabulary", torch.arange(embeddings.shape[0]))

    def restrict(self, ids: Sequence[int]) -> None:
        """Lets the softmax range over some words of the vocabulary only.

        Args:
            ids: Token ids, in the order of the logits.
        """
        self.vocabulary = torch.tensor(list(ids), device=self.vocabulary.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}vocabulary")
        if saved is not None:  # as long as it was restricted to, not as long as it is here
            self.vocabulary = torch.empty_like(saved, device=self.vocabulary.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _gather(self, features: Tensor) -> Tensor:
        """U (B, M, D) of unit variance."""
        patches = self.input_projection(self.norm(features))
        mean = patches.mean(dim=1, keepdim=True)
        context = torch.cat([patches + self.positions, mean], dim=1)
        queries = self.queries.expand(features.shape[0], -1, -1)
        read = queries + self.attention(queries, context)
        read = torch.cat([read, mean.expand_as(read)], dim=-1)
        u: Tensor = self.out_norm(self.mlp(read))
        return u

    def _logits(self, u: Tensor) -> Tensor:
        words = self.embeddings[self.vocabulary].to(u.dtype)
        return (u[:, : self.num_tokens - self.free] * self.log_scale.exp()) @ words.T

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, M - free, V') of each token over the restricted vocabulary."""
        return self._logits(self._gather(features))

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        u = self._gather(features)
        share = self._logits(u).softmax(dim=-1)
        expected = share @ self.embeddings[self.vocabulary].to(share.dtype)
        plain = u[:, self.num_tokens - self.free :] * self.spread
        return torch.cat([expected, plain.to(expected.dtype)], dim=1)
