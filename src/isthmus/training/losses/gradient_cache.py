"""Gradients of a contrastive batch that does not fit in memory, exactly.

A contrastive loss needs the vectors of the whole batch, but not the activations behind them. So
vectors are computed without gradients, a few samples at a time; the loss gives their gradients, and
those of the temperature and the bias, once; then each few samples are computed again, with the
random numbers of the first time, and their vectors' gradients taken back through them (GradCache,
Gao et al. 2021, arXiv 2101.06983, section 3). Memory is that of one chunk and the vectors.

Every parameter gets the gradient of one large batch. What a model makes of a sample must not depend
on the samples beside it: batch normalisation in training does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError


@dataclass(frozen=True)
class RandomState:
    """Where the generators of the CPU and of all GPUs in use stand.

    Example:
        >>> state = RandomState.now()
        >>> first = torch.rand(2)
        >>> state.restore()
        >>> torch.equal(first, torch.rand(2))
        True
    """

    cpu: Tensor
    gpus: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """Where they stand."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), tuple(gpus))

    def restore(self) -> None:
        """Puts them back there."""
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(list(self.gpus))


def cached_backward(
    loss: Callable[..., Tensor],
    *sides: tuple[Callable[[Any], Tensor], Sequence[Any]],
    scale: float = 1.0,
) -> Tensor:
    """Adds to every parameter the gradient of a loss over all chunks of all sides.

    Args:
        loss: Of one tensor of vectors (N, D) a side, a scalar. What else it uses, such as a
            temperature, gets its gradient from this one call.
        sides: For each side, a function from a chunk to vectors (n, D), and the chunks. It is
            called twice with each.
        scale: Factor on all gradients, for a loss scale in half precision.

    Returns:
        The loss, a scalar without a gradient.

    Raises:
        InputError: If a side has no chunk.

    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> chunks = torch.randn(6, 4).split(2)
        >>> value = cached_backward(lambda v: v.square().sum(), (layer, chunks))
        >>> layer.weight.grad.shape
        torch.Size([2, 4])
    """
    if any(not len(chunks) for _, chunks in sides):
        raise InputError("got a side without chunks: expected at least one sample")
    states: list[list[RandomState]] = []
    vectors: list[Tensor] = []
    with torch.no_grad():
        for encode, chunks in sides:
            own, found = [], []
            for chunk in chunks:
                own.append(RandomState.now())
                found.append(encode(chunk))
            states.append(own)
            vectors.append(torch.cat(found))
            del found
    leaves = [v.requires_grad_() for v in vectors]
    value = loss(*leaves)
    if value.requires_grad:
        (value * scale).backward()  # type: ignore[no-untyped-call]
    after = RandomState.now()
    for (encode, chunks), own, leaf in zip(sides, states, leaves, strict=True):
        gradients = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        start = 0
        for chunk, state in zip(chunks, own, strict=True):
            state.restore()
            again = encode(chunk)
            if again.requires_grad:
                again.backward(gradients[start : start + len(again)])  # type: ignore[no-untyped-call]
            start += len(again)
    after.restore()
    return value.detach()
