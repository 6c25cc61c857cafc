"""In how many bits tensors are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ConfigError, ExportError, suggestion

SIZES = ("f16", "f32", "q8_0")
"""What `--dtype` may say; the first is the default."""
BLOCK = 32
"""Values that share a scale in q8_0."""
WHOLE = ("position_embd", "class_embd", "rope_freqs")
"""Small tensors that are added or divided by, and stay in f32."""
CONVOLUTION = "patch_embd.weight"
"""A kernel, which llama.cpp has no quantised form of."""


def size_named(dtype: Any) -> str:
    """The size that is asked for; "auto" is f16.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> size_named("auto"), size_named("q8_0")
        ('f16', 'q8_0')
    """
    if dtype in (None, "auto"):
        return SIZES[0]
    if str(dtype) not in SIZES:
        raise ConfigError(
            f'unknown size of GGUF, "{dtype}": {suggestion(str(dtype), SIZES)}; the model is '
            "loaded in float32"
        )
    return str(dtype)


def kind_of(name: str, tensor: Tensor, size: str) -> Any:
    """The `gguf.GGMLQuantizationType` that a tensor is written in."""
    from gguf import GGMLQuantizationType as Kind

    if size == "f32" or tensor.ndim < 2 or any(word in name for word in WHOLE):
        return Kind.F32
    if size == "q8_0" and tensor.shape[-1] % BLOCK == 0 and CONVOLUTION not in name:
        return Kind.Q8_0
    return Kind.F16


def packed(name: str, tensor: Tensor, size: str) -> tuple[Any, Any]:
    """A tensor's values as they are written (a NumPy array), and their kind.

    Raises:
        ExportError: If a value is too large for f16.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import quantize

    values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    kind = kind_of(name, tensor, size)
    if kind == Kind.Q8_0:
        return quantize(values, kind), kind
    if kind == Kind.F32:
        return values, kind
    if float(abs(values).max(initial=0.0)) > torch.finfo(torch.float16).max:
        raise ExportError(
            f"{name} has a value of {float(abs(values).max()):.3g}, too large for f16: take "
            "--dtype f32"
        )
    return values.astype("float16"), kind
