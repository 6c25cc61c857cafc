"""Which patches visual tokens are made of, for whoever explains an answer.

A connector may have a method `patch_shares(features) -> (B, M, N)`: how much each of M visual
tokens has from each of N patches, rows that sum to 1. One without it whose tokens are as many as
the patches is taken to make one of each, in order. A connector whose tokens are no parts of an
image may have `token_labels(features)`, which says in words what each is.

Letters: B images, N patches, M visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Attention rollout: how much each latent has from each patch, through layers of attention.

    Each layer mixes a latent with what it reads, half and half, since the residual hands on what
    was there (Abnar and Zuidema 2020, arXiv 2005.00928, section 3). Latents begin without anything
    of the image: what they have of their own beginning is left out, and the rest sums to 1.

    Args:
        weights: For each layer (B, M, N + M), the mean over heads, patches first.

    Returns:
        (B, M, N), rows that sum to 1.

    Example:
        >>> first = torch.tensor([[[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]]])
        >>> rollout([first])[0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> (rollout([first, first])[0, 1] * 7).tolist()
        [1.0, 6.0]
    """
    latents = weights[0].shape[1]
    patches = weights[0].shape[2] - latents
    of_patches = weights[0].new_zeros(*weights[0].shape[:2], patches)
    for layer in weights:
        read = layer[..., :patches] + layer[..., patches:] @ of_patches
        of_patches = (of_patches + read) / 2
    return of_patches / of_patches.sum(dim=-1, keepdim=True)


def pooled(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Shares (M, N) of the patches of a grid in the cells that adaptive pooling makes of it.

    Args:
        grid: (rows, columns) of the N patches.
        cells: (rows, columns) of the M cells.

    Example:
        >>> pooled((2, 2), (1, 2)).tolist()
        [[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]]
    """
    one_each = torch.eye(grid[0] * grid[1]).unflatten(1, grid)[:, None]  # type: ignore[no-untyped-call]
    return F.adaptive_avg_pool2d(one_each, cells).flatten(1).T.contiguous()
