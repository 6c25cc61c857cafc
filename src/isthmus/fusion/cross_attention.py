"""Gated cross-attention: a block that reads pictures before a frozen decoder layer.

Flamingo, Alayrac et al. 2022, section 2.2 and figure 4 (`GATED XATTN-DENSE`):

    y = y + tanh(a) * attention(q = y, kv = visual tokens)
    y = y + tanh(b) * ffw(y)

With a = b = 0 the block changes nothing. A token that sees no picture passes through untouched
whatever the gates are, so a prompt without pictures is always the bare language model's.

Letters as in `sight`: B rows, L tokens, P pictures, M visual tokens, S segments, W their length.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from isthmus.attention import MultiHeadAttention, feed_forward
from isthmus.config import CrossAttention
from isthmus.fusion.sight import Sight


class GatedCrossAttentionBlock(nn.Module):
    """One gated block.

    Args:
        width: Width D of the language model.
        visual_width: Width of the visual tokens.
        config: Heads, activation, initial gate, and which pictures a token sees.

    Attributes:
        attention_gate, ffw_gate: (1,), before tanh.
    """

    def __init__(self, width: int, visual_width: int, config: CrossAttention) -> None:
        super().__init__()
        self.sees = config.sees
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(
            width, visual_width, heads=config.heads, head_dim=config.head_dim
        )
        self.ffw = feed_forward(width, mult=config.ffw_mult, activation=config.activation)
        self.attention_gate = nn.Parameter(torch.full((1,), float(config.gate)))
        self.ffw_gate = nn.Parameter(torch.full((1,), float(config.gate)))
        if config.gate:
            nn.init.zeros_(self.attention.out_projection.weight)
            nn.init.zeros_(cast(nn.Linear, self.ffw[-1]).weight)

    def forward(self, hidden: Tensor, sight: Sight, key: int) -> Tensor:
        """Adds what the pictures say to the hidden states that see one.

        Args:
            hidden: (B, L, D) states on their way into the decoder layer.
            sight: Who sees what; `sight.advance` has been called for this pass.
            key: Name under which this block's K and V are kept.

        Returns:
            (B, L, D) in the precision of `hidden`.
        """
        if sight.segments is None:
            return hidden
        keys, values = self._keys_values(sight, key)
        if self.sees == "last":
            return self._read_last(hidden, sight, keys, values)
        return self._read_previous(hidden, sight, keys, values)

    def _keys_values(self, sight: Sight, key: int) -> tuple[Tensor, Tensor]:
        """K and V (P, H, M, D_head) of every picture, projected once."""
        if key in sight.keys_values:
            return sight.keys_values[key]
        keys_values = self.attention.project_context(sight.visual)
        if sight.keep:
            sight.keys_values[key] = keys_values
        return keys_values

    def _gated(self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Both gated sublayers over (S, W, D)."""
        read = self.attention.attend(self.norm(states), keys, values, mask)
        states = states + (self.attention_gate.tanh() * read).to(states.dtype)
        return states + (self.ffw_gate.tanh() * self.ffw(states)).to(states.dtype)

    def _read_last(self, hidden: Tensor, sight: Sight, keys: Tensor, values: Tensor) -> Tensor:
        """Each segment attends to its own picture: no mask, no score that is thrown away."""
        segments = sight.segments
        assert segments is not None
        flat = hidden.flatten(0, 1)
        states = self._gated(
            flat[segments.index], keys[segments.picture], values[segments.picture], None
        )
        valid = segments.valid
        place = segments.index[valid]
        length = hidden.shape[1]
        # not through `flat`: FSDP2 wants a tensor of its own, no view
        return hidden.index_put((place // length, place % length), states[valid])

    def _read_previous(self, hidden: Tensor, sight: Sight, keys: Tensor, values: Tensor) -> Tensor:
        """Each token attends to all pictures of its row up to its own, as one sequence."""
        seen, begin = sight.seen, sight.seen_from
        assert seen is not None
        assert begin is not None
        # The row's context runs from its first picture, whatever sample of the row that is of
        first = begin[:, :1]
        ordinal = seen - first  # (B, L): 0 for the row's first picture
        depth = int(ordinal.max()) + 1
        numbers = torch.arange(depth, device=seen.device)
        picture = (first + numbers).clamp(max=keys.shape[0] - 1)  # (B, K)

        def row_context(t: Tensor) -> Tensor:  # (P, H, M, d) -> (B, H, K * M, d)
            return t[picture].transpose(1, 2).flatten(2, 3)

        allowed = numbers <= ordinal[..., None]  # (B, L, K)
        allowed &= numbers >= (begin - first)[..., None]
        blind = seen < 0
        allowed = allowed | blind[..., None]  # never an empty softmax; undone below
        mask = allowed.repeat_interleave(keys.shape[2], dim=2)[:, None]
        states = self._gated(hidden, row_context(keys), row_context(values), mask)
        return torch.where(blind[..., None], hidden, states)
