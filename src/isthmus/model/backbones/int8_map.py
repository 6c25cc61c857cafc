"""A linear map in int8 on a CPU: weights by channel, activations by token, both turned.

Decoding on a CPU takes as long as it takes to read the weights, and int8 is a quarter of float32.

    y = W x  ~  s_w * s_x * (Q_w Q_x)        Q_w = round(W R / s_w),  Q_x = round(R' x / s_x)

`s_w` is one number for each row of W, `s_x` one for each token. A few inputs of a language model
are far larger than the rest, and would leave the rest few of the 255 steps. So inputs are turned by
`R` beforehand, blocks of a Hadamard matrix, which spreads each over its block; as `R R' = 1` the
product stays what it is (Ashkboos et al. 2024, QuaRot, arXiv 2404.00456; Dettmers et al. 2022,
LLM.int8(), arXiv 2208.07339, section 3, on the large inputs). Products of integers are exact.

Which operators of PyTorch multiply is found out by trying (`cpu.int8_kernel`).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from isthmus.cpu import Kernel

BLOCK = 64
"""Most inputs that are turned together; a power of two."""
_TINY = torch.finfo(torch.float32).tiny
_FEW, _ROWS = 4, 4096


@functools.cache
def _hadamard(size: int) -> Tensor:
    """An orthogonal matrix of 1 and -1 over the root of its size, a power of two."""
    with torch.inference_mode(False):
        found = torch.ones(1, 1)
        while len(found) < size:
            found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
        return found / size**0.5


class Int8Map:
    """A linear map in int8, without a gradient.

    Args:
        weight: (N, K) float32.
        bias: (N,) or None.
        by: The kernel.

    Example:
        >>> from isthmus.cpu import int8_kernel
        >>> weight, states = torch.eye(128), torch.ones(2, 128)
        >>> by = int8_kernel()
        >>> by is None or torch.allclose(Int8Map(weight, None, by)(states), states, atol=0.02)
        True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, by: Kernel) -> None:
        self._outputs, self._inputs = weight.shape
        block = min(self._inputs & -self._inputs, BLOCK)  # the first is a power of two
        self._turn = _hadamard(block)
        self._step = torch.tensor(1 / by.largest)
        self._bias = bias
        whole = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(len(weight))
        for begin in range(0, len(weight), _ROWS):  # a vocabulary's would take three times its size
            here = slice(begin, begin + _ROWS)
            turned = self._turned(weight[here])
            scales[here] = turned.abs().amax(dim=1).clamp_(min=_TINY) / 127
            whole[here] = turned.div_(scales[here, None]).round_()
        self._product = by.pack(whole, scales)

    def _turned(self, states: Tensor) -> Tensor:
        return (states.reshape(-1, len(self._turn)) @ self._turn).view(-1, self._inputs)

    def __call__(
        self, states: Tensor, over: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """Outputs (M, N) of inputs (M, K), float32.

        Args:
            states: The inputs.
            over: (M, 1) what each token's inputs are to be divided by, which costs nothing here.
            onto: (M, N) what the outputs are added to.
        """
        turned = self._turned(states)
        if len(states) > _FEW:
            # a norm of infinity says the same in ten times the time, but is one call
            steps = turned.abs().amax(dim=1, keepdim=True)
        else:
            steps = torch.linalg.vector_norm(turned, math.inf, dim=1, keepdim=True)
        steps.mul_(self._step).clamp_min_(_TINY)
        found = self._product(turned.div_(steps))
        if over is not None:
            steps.div_(over)
        if self._bias is not None:
            found = torch.addcmul(self._bias, found, steps)
        elif onto is not None:
            return torch.addcmul(onto, found, steps)
        else:
            found.mul_(steps)
        return found if onto is None else found.add_(onto)
