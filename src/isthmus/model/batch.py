"""What goes into a vision-language model and what comes out, and rows padded to one length.

Letters: B rows of a batch, L tokens a row, P images in the whole batch, N patches an image, V
the rows of the language model's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.model.layout import Layout
from isthmus.model.media.base import Attachment, Features, Opened

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts ready for the model.

    Attributes:
        input_ids: (B, L) int64; each image's layout stands in them, its places as `<image>`.
        attention_mask: (B, L) int64, 0 at padding.
        pixels: (P, 3, H, W) or (P, T, 3, H, W) the images or clips in reading order; where they
            differ in shape, or are of other media, a tensor, `Opened` or `Features` for each.
        features: (P, N, D_vision) or (P, T, N, D_vision) of images or clips, in place of `pixels`.
        visual: (P, M, D_visual) visual tokens, in place of `features`; where images differ in
            their number, (M_i, D_visual) for each.
        labels: (B, L) int64, -100 where a token costs nothing.
        weights: (B, L) what each labelled token's cross-entropy counts for in a sum; None for
            their mean.
        positions: (B, L) int64, starting at 0 again with each sample, where rows hold several
            (packing): no sample then sees another. None where a row is one sample.
        layouts: The images' layouts; None where all have the model's own.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor | Sequence[Attachment] | None = None
    features: Tensor | None = None
    visual: Tensor | Sequence[Tensor] | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    positions: Tensor | None = None
    layouts: Sequence[Layout] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {k: _moved(v, device) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        if torch.device(device).type == "cuda" and value.device.type == "cpu":
            # from pinned memory the copy runs beside what the device still computes
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device)
    if isinstance(value, Features | Opened):
        return replace(value, values=_moved(value.values, device))
    moved = Tensor | Features | Opened
    return tuple(_moved(v, device) if isinstance(v, moved) else v for v in value)


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: (B, K, V) for the last K positions; (B, K, V + 2) when the batch has images,
            the two being `<image>` (always -inf) and `<|endofchunk|>`. With labels (1, T, ...) for
            the T positions before a labelled token, in reading order.
        loss: Cross-entropy over the labelled tokens, a scalar: their mean, or with `Batch.weights`
            their weighted sum; None without labels.
        token_losses: (T,) each labelled token's own, unweighted and detached.
    """

    logits: Tensor
    loss: Tensor | None = None
    token_losses: Tensor | None = None


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> tuple[Tensor, Tensor]:
    """Token rows as one (B, L) tensor and its mask, padded on a side.

    Example:
        >>> pad([[1, 2], [3]], 0, "left")[0].tolist()
        [[1, 2], [0, 3]]
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask
