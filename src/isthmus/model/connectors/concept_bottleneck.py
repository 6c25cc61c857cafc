"""`concept_bottleneck`: an image as the names of what is in it, in the language model's own words.

A linear classifier over named concepts, as in concept bottleneck models (Koh et al. 2020), whose
output is handed on as words: visual token k is the expected embedding of the k-th word piece of
the concept's name,

    p = softmax(scale * cos(w_c, phi(features))),   token_k = sum_c p_c E[name_c[k]].

Expected word embeddings are the visual tokens of AlignVLM's Align module (Masry et al. 2025, arXiv
2502.01341); taking the expectation over whole names keeps the pieces of a name together. They lie
where a frozen language model can read them before any training of its own. What no name says goes
through a few free tokens, gathered by attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count, NotNegative
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape

UNUSED = -1
FIRST_SCALE = 20.0


class ConceptBottleneckConnector(nn.Module):
    """Names as visual tokens, and a few free tokens beside them.

    Args:
        in_width: Width of the features.
        embeddings: (V, D) the language model's word embeddings; kept frozen and never saved.
        concepts: Most concepts C that can be named.
        length: Word pieces K of a name; shorter names are filled up by whoever sets them.
        top: How many of the likeliest concepts the expectation is taken over.
        free: Number of free tokens.
        heads: Attention heads of the free tokens, each 64 wide.

    Attributes:
        names: (C, K) int64 word pieces of each concept, -1 in unused rows; saved with the weights.
            Until `set_names` is called, each concept is one word piece of the vocabulary.
    """

    embeddings: Tensor
    names: Tensor

    def __init__(
        self,
        in_width: int,
        embeddings: Tensor,
        *,
        concepts: int,
        length: int,
        top: int,
        free: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.num_tokens = length + free
        self.width = embeddings.shape[1]
        self.top = min(top, concepts)
        self.norm = nn.LayerNorm(in_width)
        self.classifier = nn.Parameter(torch.randn(concepts, in_width) * in_width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.queries = nn.Parameter(torch.randn(free, in_width) * in_width**-0.5)
        self.attention = MultiHeadAttention(
            in_width, in_width, heads=heads, head_dim=64, bias=True, out_width=self.width
        )
        self.out_norm = nn.LayerNorm(self.width)
        # free tokens are as long as words are
        spread = float(embeddings.detach().float().norm(dim=-1).median())
        nn.init.constant_(self.out_norm.weight, spread / math.sqrt(self.width))
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        pieces = torch.arange(concepts) % embeddings.shape[0]
        self.register_buffer("names", pieces[:, None].repeat(1, length))

    def set_names(self, names: Sequence[Sequence[int]]) -> None:
        """Says what each concept is called.

        Args:
            names: For each concept its K word pieces.

        Raises:
            ConfigError: If there are more names than rows, or a name has another length.
        """
        rows, length = self.names.shape
        if not 0 < len(names) <= rows or any(len(n) != length for n in names):
            raise ConfigError(
                f"concept_bottleneck: got {len(names)} names, expected 1 to {rows} of "
                f"{length} word pieces: set connector.concepts"
            )
        self.names.fill_(UNUSED)
        self.names[: len(names)] = torch.tensor([list(n) for n in names])

    def _pooled(self, features: Tensor) -> Tensor:
        """Power-normalised mean of the patches (B, D_vision), of unit length.

        The signed root keeps a few strong channels from deciding alone (Perronnin et al. 2010).
        """
        mean = features.mean(dim=1)
        return F.normalize(self.norm(mean.sign() * mean.abs().sqrt()), dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the concepts; -inf in unused rows."""
        weight = F.normalize(self.classifier, dim=-1)
        logits = self.log_scale.exp() * (self._pooled(features) @ weight.T)
        return logits.masked_fill(self.names[:, 0] == UNUSED, float("-inf"))

    def no_weight_decay(self) -> set[str]:
        """The queries of the free tokens: positions, and no maps."""
        return {"queries"}

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, K + free, D) of features (B, N, D_vision)."""
        likely, index = self.logits(features).topk(self.top, dim=-1)
        share = likely.softmax(dim=-1)
        words = self.embeddings[self.names[index].clamp(min=0)].to(share.dtype)
        named = torch.einsum("bt,btkd->bkd", share, words)
        queries = self.queries.expand(features.shape[0], -1, -1)
        free = self.out_norm(self.attention(queries, self.norm(features)))
        return torch.cat([named, free.to(named.dtype)], dim=1)


@CONNECTORS.register("concept_bottleneck")
@dataclass(frozen=True, kw_only=True)
class ConceptBottleneck(Config):
    """Names of what is in the image, as expected word embeddings, and a few free tokens.

    A classifier over named concepts (Koh et al. 2020) whose output is handed on in the language
    model's own words (AlignVLM, Masry et al. 2025): a language model that was never trained for
    images can read such tokens from the start.
    """

    concepts: Count = 5000
    """Most concepts that can be named."""
    length: Count = 6
    """Word pieces of a name."""
    top: Count = 16
    """How many of the likeliest concepts the expectation is taken over."""
    free: NotNegative = 4
    """Visual tokens that are no names."""
    heads: Count = 8
    """Attention heads of the free tokens, each 64 wide."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> ConceptBottleneckConnector:
        """The module for features of a shape."""
        if embeddings is None or embeddings.shape[1] != width:
            raise ConfigError(
                "concept_bottleneck makes tokens of the language model's width from its word "
                "embeddings: use it with fusion inline, or with cross_attention and visual_width "
                "set to that width"
            )
        return ConceptBottleneckConnector(shape.width, embeddings, **asdict(self))

    def toy(self) -> ConceptBottleneck:
        """The same connector, small."""
        return replace(self, concepts=32, length=2, top=4, free=2, heads=2)
