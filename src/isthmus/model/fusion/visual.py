"""Visual tokens on their way from a connector to a fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Visual = Tensor | Sequence[Tensor]
"""Visual tokens of images in reading order: (P, M, D_visual), or (M_i, D_visual) for each where
images differ in their number."""


def joined(visual: Visual) -> Tensor:
    """All visual tokens in one piece, (sum of M_i, D_visual).

    Example:
        >>> joined([torch.zeros(2, 3), torch.zeros(5, 3)]).shape
        torch.Size([7, 3])
    """
    return visual.flatten(0, 1) if isinstance(visual, Tensor) else torch.cat(list(visual))
