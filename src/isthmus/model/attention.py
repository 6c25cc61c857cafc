"""The one multi-head attention every module uses, and the feed-forward beside it.

Letters: B batch, Q query tokens, C context tokens, H heads, d head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import ConfigError, suggestion


class SquaredReLU(nn.Module):
    """relu(x)^2, Flamingo's activation (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation, element by element."""
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "squared_relu": SquaredReLU,
}


def build_activation(name: str) -> nn.Module:
    """An activation by its name in `ACTIVATIONS`.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> build_activation("gelu")
        GELU(approximate='none')
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f'unknown activation "{name}": {suggestion(name, ACTIVATIONS)}')
    return ACTIVATIONS[name]()


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of queries over a context (Vaswani et al. 2017, section 3.2).

    Keys and values can be projected once and attended to many times, which is what decoding
    beside an image does.

    Args:
        query_width: Width of the queries.
        context_width: Width of the context.
        heads: Number of heads H.
        head_dim: Width d of a head; the inner width is H * d.
        bias: Whether the four projections have biases (BERT does, Flamingo does not).
        out_width: Width of the output; None is the queries'.

    Example:
        >>> import torch
        >>> attention = MultiHeadAttention(8, 6, heads=2, head_dim=4)
        >>> attention(torch.zeros(1, 3, 8), torch.zeros(1, 5, 6)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        query_width: int,
        context_width: int,
        *,
        heads: int,
        head_dim: int,
        bias: bool = False,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.query_projection = nn.Linear(query_width, inner, bias=bias)
        self.context_projection = nn.Linear(context_width, 2 * inner, bias=bias)  # K, then V
        self.out_projection = nn.Linear(inner, out_width or query_width, bias=bias)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, H * d) as (B, H, T, d)."""
        heads = (self.heads, x.shape[-1] // self.heads)  # no -1: there may be no tokens at all
        return x.view(x.shape[0], x.shape[1], *heads).transpose(1, 2)

    def project_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, C, d) of a context (B, C, D_context)."""
        keys, values = self.context_projection(context).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What the queries read.

        Args:
            queries: (B, Q, D_query).
            keys: (B, H, C, d).
            values: (B, H, C, d).
            mask: Broadcastable to (B, H, Q, C), True where a query may look.

        Returns:
            (B, Q, D_out).
        """
        q = self._split(self.query_projection(queries))
        read = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        out: Tensor = self.out_projection(read.transpose(1, 2).flatten(2))
        return out

    def weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much of each part of a context the queries read, softmax(Q K^T / sqrt(d)).

        `attend` never holds these weights: they are computed again for whoever wants to see them.

        Args:
            queries: As in `attend`.
            keys: As in `attend`.
            mask: As in `attend`.

        Returns:
            (B, H, Q, C) in float32, rows that sum to 1.

        Example:
            >>> import torch
            >>> attention = MultiHeadAttention(8, 6, heads=2, head_dim=4)
            >>> keys, _ = attention.project_context(torch.randn(1, 5, 6))
            >>> attention.weights(torch.randn(1, 3, 8), keys).sum(dim=-1).shape
            torch.Size([1, 2, 3])
        """
        q = self._split(self.query_projection(queries))
        scores = (q @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projects the context and attends to it; shapes as in `attend`."""
        return self.attend(queries, *self.project_context(context), mask)


def feed_forward(width: int, *, mult: int, activation: str) -> nn.Sequential:
    """LayerNorm, Linear, activation, Linear, without biases in the maps (Flamingo, figure 4).

    Args:
        width: Width D of what goes in and comes out.
        mult: Hidden width as a multiple of D.
        activation: A name in `ACTIVATIONS`.

    Returns:
        A module from (..., D) to (..., D), without the residual.

    Raises:
        ConfigError: If the activation is unknown.
    """
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, mult * width, bias=False),
        build_activation(activation),
        nn.Linear(mult * width, width, bias=False),
    )
