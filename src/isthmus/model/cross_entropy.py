"""Cross-entropy over a vocabulary that holds logits once, and their gradient once.

A language model's head is the widest thing in a training step: 500 labelled tokens of 49,000 words
are 100 MB in fp32. `torch.nn.functional.cross_entropy` on logits in half precision keeps them, a
copy in fp32, their log-softmax, a gradient of that and one in half precision. Here softmax is taken
a few rows at a time, in fp32 whatever the logits' precision, and only each row's highest logit
and log-sum are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Numbers of a chunk: what a CPU's cache holds; on a GPU enough to fill it."""


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Runs of rows."""
    rows = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // max(1, logits.shape[1]))
    return (slice(i, i + rows) for i in range(0, len(logits), rows))


class _TokenLosses(torch.autograd.Function):
    """-log softmax(logits)[target] of each row; the backward pass takes the softmax again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        # the highest logit apart from the rest: their sum would lose digits where logits are large
        peak = logits.amax(dim=1).float() if logits.numel() else logits.new_zeros(0).float()
        total = torch.empty_like(peak)
        for rows in _chunks(logits):
            total[rows] = (logits[rows].float() - peak[rows, None]).exp_().sum(dim=1)
        total.log_()
        ctx.save_for_backward(logits, targets, peak, total)
        return total - (logits.gather(1, targets[:, None]).squeeze(1).float() - peak)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets, peak, total = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            chunk = (logits[rows].float() - peak[rows, None]).sub_(total[rows, None]).exp_()
            chunk.scatter_add_(1, targets[rows, None], chunk.new_full((len(chunk), 1), -1.0))
            gradient[rows] = chunk.mul_(upstream[rows, None])
        return gradient, None


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each row's cross-entropy, as `F.cross_entropy(logits.float(), targets, reduction="none")`.

    Args:
        logits: (T, V) in any precision; -inf for what cannot be.
        targets: (T,) int64.

    Returns:
        (T,) fp32, with a gradient once.

    Example:
        >>> token_losses(torch.zeros(1, 4), torch.tensor([2])).exp()
        tensor([4.])
    """
    losses: Tensor = _TokenLosses.apply(logits, targets)
    return losses
