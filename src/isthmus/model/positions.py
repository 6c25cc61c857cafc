"""Where tokens stand: the one answer for batches, prefixes, decoded tokens, trees and packed rows.

Most language models count tokens: a token's position is how many stand before it. Those that were
trained with M-RoPE (Wang et al. 2024, Qwen2-VL, arXiv 2409.12191, section 2.1) have three numbers
for each token: time, row and column. In a token of text the three are one number. The tokens of an
image of h x w tokens that begins at position p have p, p + row and p + column, and what follows
goes on from p + max(h, w). So behind an image a row of tokens lags behind its own length.

Letters: B rows, L tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.model.layout import Layout


def counted(attention_mask: Tensor) -> Tensor:
    """How many tokens stand before each one, (B, L); 0 at padding in front.

    Args:
        attention_mask: (B, L), 0 at padding.

    Example:
        >>> counted(torch.tensor([[0, 1, 1], [1, 1, 1]])).tolist()
        [[0, 0, 1], [0, 1, 2]]
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Positions:
    """Positions of tokens of some rows, and of whatever follows them.

    Attributes:
        tokens: (B, L) int64, or (3, B, L) where tokens have a time, a row and a column.
        lag: (B,) how many positions each row has fewer than tokens, less than 0 where positions
            begin later than with 0; None where none has.
    """

    tokens: Tensor
    lag: Tensor | None = None

    def behind(self, counts: Tensor) -> Tensor:
        """Positions (B, N) of text behind the rows.

        Args:
            counts: (B, N) how many tokens stand before each one.
        """
        return counts if self.lag is None else counts - self.lag[:, None]

    def lag_of(self, row: int) -> int:
        """The lag of one row."""
        return 0 if self.lag is None else int(self.lag[row])

    def select(self, rows: Tensor) -> Positions:
        """Those of some rows, or of repeated ones: (B',) row numbers."""
        lag = None if self.lag is None else self.lag[rows]
        return Positions(self.tokens[..., rows, :], lag)


def positions_of(
    attention_mask: Tensor,
    is_image: Tensor,
    layouts: Sequence[Layout],
    *,
    axes: int,
    samples: Tensor | None = None,
    before: Sequence[Sequence[Layout]] = (),
    first: int = 0,
) -> Positions:
    """Positions of tokens among which images stand.

    Args:
        attention_mask: (B, K + L), 0 at padding, of K tokens that came before and of these L.
        is_image: (B, L) bool, the places of all images in these tokens.
        layouts: The layouts of these images, in reading order.
        axes: How many numbers the language model has for a token, `LanguageModel.axes`.
        samples: (B, L) positions that start at 0 again with each sample, where rows hold several.
        before: For each row the layouts of the images among the tokens that came before.
        first: The position of the first token.

    Example:
        >>> from isthmus.model.layout import HOLE
        >>> image, ids = Layout((HOLE,) * 6, grid=(2, 3)), torch.tensor([[1, 9, 9, 9, 9, 9, 9, 2]])
        >>> found = positions_of(torch.ones_like(ids), ids == 9, [image], axes=3)
        >>> found.tokens[:, 0].tolist()
        [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
        >>> found.behind(torch.tensor([[8]])).tolist()
        [[5]]
    """
    length = is_image.shape[1]
    tokens = (counted(attention_mask) if samples is None else samples)[:, -length:]
    if first:
        lag = torch.full((len(tokens),), -first, device=tokens.device)
        return Positions(tokens + first, lag)
    known = [sum(layout.saved for layout in own) for own in before]
    if axes == 1 or not (any(known) or any(layout.grid for layout in layouts)):
        return Positions(tokens)
    lag = torch.tensor(known or [0] * len(tokens), device=tokens.device)
    tokens = (tokens - lag[:, None]).repeat(3, 1, 1)
    places = is_image.nonzero().tolist()
    number = 0
    for layout in layouts:
        row, begin = places[number]
        number += layout.places
        if layout.grid is None:
            continue
        end = begin + layout.holes
        at, columns = tokens[0, row, begin].clone(), layout.grid[1]
        place = torch.arange(layout.holes, device=tokens.device)
        tokens[0, row, begin:end] = at
        tokens[1, row, begin:end] = at + place // columns
        tokens[2, row, begin:end] = at + place % columns
        last = _end_of_sample(samples, row, end, length)
        tokens[:, row, end:last] -= layout.saved
        lag[row] += layout.saved
    return Positions(tokens, lag)


def _end_of_sample(samples: Tensor | None, row: int, start: int, length: int) -> int:
    """Where the sample ends that a token belongs to."""
    if samples is None:
        return length
    following = (samples[row, start:] == 0).nonzero()
    return start + int(following[0]) if len(following) else length
