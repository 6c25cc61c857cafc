"""Ways to be faster that PyTorch does not promise to keep, each behind one switch.

Whatever is missing or switched off is done in the ordinary way. Nothing here imports torch until it
is asked something.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


def speedup(name: Literal["int8", "packed", "traced"]) -> bool:
    """Whether a way to be faster may be used that PyTorch does not promise to keep.

    "int8": linear layers of a CPU in int8; off with `ISTHMUS_INT8=0`.
    "packed": linear layers on oneDNN's private operators; off with `ISTHMUS_PACKED=0`.
    "traced": convolutional encoders as one graph of `torch.jit`; off with `ISTHMUS_TRACED=0`.

    Example:
        >>> speedup("packed")
        True
    """
    return os.environ.get(f"ISTHMUS_{name.upper()}", "1") != "0"


def onednn() -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] | None:
    """OneDNN's private operators: one that packs a weight, one that multiplies with it.

    None where PyTorch has none, or they are switched off (`speedup`).
    """
    import torch

    if not speedup("packed"):
        return None
    try:
        operators: Any = torch.ops.mkldnn
        return operators._reorder_linear_weight.default, operators._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None
