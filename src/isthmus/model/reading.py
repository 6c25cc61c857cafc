"""Who sees what comes later: the one answer for batches, prompts and packed rows.

A language model sees what stands before. Some released vision-language models were trained to read
more than that at once: in Gemma 3 the tokens of an image see their whole image, and in PaliGemma
(Beyer et al. 2024, arXiv 2407.07726, section 3.1) a whole prompt sees itself, and positions begin
with 1. What is decoded behind a prompt sees what stands before, in all of them.

Letters: B rows, K tokens that came before, L tokens a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

SLIDING = "sliding_attention"
"""What Transformers calls a layer whose tokens see so many before them."""


@dataclass(frozen=True)
class Reading:
    """How a language model reads what it is given.

    Attributes:
        sees: Which tokens see what stands behind them: "none", those of an "image" their image, or
            those of a "prompt" all of it.
        first: The position of the first token.
    """

    sees: Literal["none", "image", "prompt"] = "none"
    first: int = 0

    @property
    def shares(self) -> bool:
        """Whether the states of a beginning depend on nothing that follows, images in whole."""
        return self.sees != "prompt"

    @property
    def far(self) -> bool:
        """Whether what is seen so is seen beyond the window of layers that slide."""
        return self.sees == "prompt"

    def blocks(self, is_image: Tensor, learned: Tensor | None = None) -> Tensor | None:
        """The number of the block (B, L) whose tokens see each other, -1 outside; None for none.

        Args:
            is_image: (B, L) bool, the places of images.
            learned: (B, L) bool, the tokens of answers; None where there are none.

        Example:
            >>> places = torch.tensor([[False, True, True, False, True]])
            >>> Reading("image").blocks(places).tolist()
            [[-1, 0, 0, -1, 1]]
            >>> Reading("prompt").blocks(places, torch.tensor([[False] * 3 + [True] * 2])).tolist()
            [[0, 0, 0, -1, -1]]
        """
        if self.sees == "prompt":
            whole = torch.zeros_like(is_image, dtype=torch.long)
            return whole if learned is None else whole.masked_fill(learned, -1)
        if self.sees == "none" or not bool(is_image.any()):
            return None
        begins = is_image.clone()
        begins[:, 1:] &= ~is_image[:, :-1]
        return (begins.long().cumsum(dim=1) - 1).masked_fill(~is_image, -1)


CAUSAL = Reading()
"""Every token sees what stands before it."""


def block_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask (B, 1, L, L) under which each sample of a row sees itself alone.

    Args:
        positions: (B, L) int64, starting at 0 again with each sample.
        dtype: Of the mask; what may not be seen has its smallest number.

    Example:
        >>> (block_mask(torch.tensor([[0, 1, 0]]), torch.float32) == 0).int().tolist()
        [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]
    """
    sample = (positions == 0).cumsum(dim=1)
    allowed = (sample[:, :, None] == sample[:, None, :]).tril()
    mask = torch.zeros(allowed.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def mask_of(
    blocks: Tensor,
    attention_mask: Tensor,
    config: Any,
    dtype: torch.dtype,
    *,
    states: Any = None,
    samples: Tensor | None = None,
    far: bool = False,
) -> Tensor | Mapping[str, Tensor]:
    """The additive mask of tokens some of which see what stands behind them.

    Args:
        blocks: (B, L), as `Reading.blocks` gives it.
        attention_mask: (B, K + L), 0 at padding.
        config: Of the language model, whose layers may slide.
        dtype: Of the mask; what may not be seen has its smallest number.
        states: What is kept of the K tokens that came before; None for none.
        samples: (B, L) positions that start at 0 again with each sample, where rows hold several.
        far: Whether tokens of a block see each other beyond the window of layers that slide.

    Returns:
        (B, 1, L, K + L); by the types of layers where some of them slide. Those keep no more keys
        than their window has.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> mask = mask_of(torch.tensor([[-1, 0, 0]]), torch.ones(1, 3), Config(), torch.float32)
        >>> (mask == 0).int().tolist()
        [[[[1, 0, 0], [1, 1, 1], [1, 1, 1]]]]
    """
    length, whole = blocks.shape[1], attention_mask.shape[1]
    place = torch.arange(whole, device=blocks.device)
    own = place[-length:]
    known = torch.full_like(attention_mask, -1, dtype=torch.long)
    known[:, -length:] = blocks
    together = (blocks[:, :, None] == known[:, None, :]) & (blocks >= 0)[:, :, None]
    there = attention_mask[:, None, :].bool()
    if samples is not None:
        sample = (samples == 0).cumsum(dim=1)
        there = there & (sample[:, :, None] == sample[:, None, :])
    allowed = ((place <= own[:, None]) | together) & there
    lowest = torch.finfo(dtype).min

    def additive(seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest)

    types = getattr(config, "layer_types", None) or ()
    if SLIDING not in types:
        return additive(allowed)[:, None]
    near = allowed & (place > own[:, None] - config.sliding_window)
    if far:
        near |= together & there
    if states is not None:
        _, offset = states.layers[types.index(SLIDING)].get_mask_sizes(length)
        near = near[:, :, offset:]
    masks = {kind: additive(allowed)[:, None] for kind in set(types) - {SLIDING}}
    return {**masks, SLIDING: additive(near)[:, None]}
