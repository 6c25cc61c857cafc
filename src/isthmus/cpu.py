"""What this machine's CPU computes in, found out by asking PyTorch and by trying.

Nothing here imports torch until it is asked something.
"""

from __future__ import annotations

import functools
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isthmus.config.speedups import onednn, speedup

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Product = Callable[[Tensor], Tensor]

log = logging.getLogger(__name__)

WORTH = 0.8
"""An int8 kernel is taken if it needs at most this share of float32's time for one token."""


@functools.cache
def slowdown(dtype: str) -> float:
    """How many times as long as in float32 a small matrix product takes on the CPU, measured.

    Args:
        dtype: "bfloat16" or "float16".
    """
    import torch

    def seconds(kind: torch.dtype) -> float:
        a, b = torch.ones(32, 576, dtype=kind), torch.ones(1536, 576, dtype=kind)
        times = []
        for _ in range(4):  # the first one warms up; the least is the least disturbed
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return seconds(getattr(torch, dtype)) / seconds(torch.float32)


def half_types() -> tuple[str, ...]:
    """Narrow data types that the CPU multiplies matrices of in hardware."""
    import torch

    can: Any = torch.cpu  # its queries are private, and may be missing in another version

    def asks(name: str) -> bool:
        query = getattr(can, name, None)
        try:
            return bool(query()) if query is not None else False
        except RuntimeError:
            return False

    arm = torch.backends.cpu.get_cpu_capability().startswith("SVE")
    bf16 = arm or asks("_is_avx512_bf16_supported") or asks("_is_amx_tile_supported")
    fp16 = asks("_is_amx_fp16_supported")
    return (*(("bfloat16",) if bf16 else ()), *(("float16",) if fp16 else ()))


def packed_types() -> tuple[str, ...]:
    """Data types whose linear layers oneDNN's private operators take on this CPU."""
    import torch

    found: list[str] = []
    operators = onednn()
    for name in ("float32", "bfloat16") if operators else ():
        assert operators is not None
        reorder, linear = operators
        weight = torch.ones(4, 8, dtype=getattr(torch, name))
        try:
            with torch.inference_mode():
                linear(weight[:1], reorder(weight, None), None, "none", [], "")
        except (RuntimeError, AttributeError, NotImplementedError, TypeError):
            continue
        found.append(name)
    return tuple(found)


# --- int8 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A way to multiply integers that this machine has.

    Attributes:
        name: Of the library: "fbgemm" or "onednn".
        largest: Activations are rounded to -largest ... largest. Below 127 where the CPU adds up
            pairs of products in 16 bits, which would overflow.
        pack: Integers (N, K) int8 and the scales (N,) of their rows to the product with them.
    """

    name: str
    largest: int
    pack: Callable[[Tensor, Tensor], Product]


def _fbgemm(largest: int, weight: Tensor, scales: Tensor) -> Product:
    import torch

    operators: Any = torch.ops.quantized
    zero = largest + 1
    with warnings.catch_warnings():  # of a way to make such tensors that is to go
        warnings.simplefilter("ignore")
        whole = torch._make_per_channel_quantized_tensor(
            weight, scales.double(), torch.zeros(len(weight), dtype=torch.long), 0
        )
        packed = operators.linear_prepack(whole, None)
    multiply = operators.linear_with_input_q_dq_qweight_dq_output_fp32.default
    return lambda states: multiply(states, 1.0, zero, packed)


def _onednn(largest: int, weight: Tensor, scales: Tensor) -> Product:
    import torch

    operators: Any = torch.ops.onednn
    zero, zeros = largest + 1, torch.zeros(len(weight), dtype=torch.long)
    packed = operators.qlinear_prepack(weight, None)
    multiply = operators.qlinear_pointwise.default

    def product(states: Tensor) -> Tensor:
        whole = states.round().add_(zero).to(torch.uint8)
        found: Tensor = multiply(
            whole, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found

    return product


_LIBRARIES: dict[str, Callable[[int, Tensor, Tensor], Product]] = {
    "fbgemm": _fbgemm,
    "onednn": _onednn,
}


@functools.cache
def int8_kernel() -> Kernel | None:
    """The fastest kernel that is right on this machine; None if none beats float32.

    Off with `ISTHMUS_INT8=0`.
    """
    if not speedup("int8"):
        return None
    found = [k for name in _LIBRARIES if (k := _exact(name)) is not None]
    timed = sorted((_share_of_float(k), n) for n, k in enumerate(found))
    for share, number in timed:
        log.debug("int8 by %s: %.2f of float32's time", found[number].name, share)
    return found[timed[0][1]] if timed and timed[0][0] <= WORTH else None


def _exact(name: str) -> Kernel | None:
    """A library's kernel with as many levels as it multiplies without an error."""
    import torch

    for largest in (127, 63):
        made = Kernel(name, largest, functools.partial(_LIBRARIES[name], largest))
        weight = torch.full((128, 256), 127, dtype=torch.int8)
        weight[1::2] = torch.arange(-128, 128).clamp(-127, 127).to(torch.int8)
        states = torch.full((3, 256), float(largest))
        states[1, ::2] = -largest
        states[2] = torch.linspace(-largest, largest, 256).round()
        try:
            got = made.pack(weight, torch.ones(128))(states)
        except (RuntimeError, AttributeError, NotImplementedError, TypeError):
            return None
        if torch.equal(got.double(), states.double() @ weight.double().T):
            return made
    return None


def _share_of_float(made: Kernel, inputs: int = 576, outputs: int = 1536) -> float:
    """How long one token takes, as a share of what it takes in float32; measured."""
    import torch

    weight = torch.linspace(-1, 1, outputs * inputs).view(outputs, inputs)
    product = made.pack((weight * 127).to(torch.int8), torch.ones(outputs))
    states = torch.ones(1, inputs)
    ways: list[Product] = [product, functools.partial(torch.nn.functional.linear, weight=weight)]
    least, threads = [math.inf, math.inf], torch.get_num_threads()
    torch.set_num_threads(1)  # where others are at work, two threads wait for each other
    try:
        for _ in range(30):  # in turn, and the least of each
            for n, work in enumerate(ways):
                started = time.perf_counter()
                work(states)
                least[n] = min(least[n], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return least[0] / least[1]
