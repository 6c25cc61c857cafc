"""Buffers that a model computes and no file holds keep their precision.

Such are the frequencies of rotary positions. In half precision they would put every token a little
elsewhere: `module.to(torch.bfloat16)` rounds them, and Transformers' `from_pretrained(dtype=...)`
does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ComputedBuffer:
    """A buffer as it was before a module was moved or converted.

    Attributes:
        owner: The module that has it.
        name: Its name there.
        value: Its value.
    """

    owner: nn.Module
    name: str
    value: Tensor


def computed_buffers(module: nn.Module) -> list[ComputedBuffer]:
    """The buffers of real numbers, of a module and all within, that are not saved with it.

    Example:
        >>> layer = nn.Module()
        >>> layer.register_buffer("kept", torch.zeros(1))
        >>> layer.register_buffer("computed", torch.zeros(1), persistent=False)
        >>> [found.name for found in computed_buffers(layer)]
        ['computed']
    """
    return [
        ComputedBuffer(owner, name, value)
        for owner in module.modules()
        for name, value in owner._buffers.items()
        if value is not None
        and value.is_floating_point()
        and name in owner._non_persistent_buffers_set
    ]


def keep_precision(before: list[ComputedBuffer]) -> None:
    """Gives buffers that were converted their values back, where they are now."""
    for found in before:
        now = found.owner._buffers[found.name]
        if now is not None and now.dtype != found.value.dtype:
            found.owner._buffers[found.name] = found.value.to(now.device)


def converted(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A module, itself converted, but for what it computes.

    Args:
        module: The module.
        dtype: The precision; None leaves it as it is.
    """
    if dtype is not None:
        before = computed_buffers(module)
        module.to(dtype)
        keep_precision(before)
    return module
