"""Frequencies of rotary positions keep their precision (RoPE, Su et al. 2021, arXiv 2104.09864).

They are a buffer that a model computes and no file holds, which Transformers calls `inv_freq`.
`module.to(torch.bfloat16)` would round it and put every token a little elsewhere; Transformers'
`from_pretrained(dtype=...)` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

NAME = "inv_freq"
"""Ends the names of such buffers."""


@contextmanager
def exact_frequencies(module: nn.Module) -> Iterator[None]:
    """A module may be moved and converted within; its rotary frequencies are only moved.

    Example:
        >>> layer = nn.Module()
        >>> layer.register_buffer("inv_freq", torch.tensor([0.1]), persistent=False)
        >>> with exact_frequencies(layer):
        ...     _ = layer.to(torch.bfloat16)
        >>> layer.inv_freq
        tensor([0.1000])
    """
    before = [
        (owner, name, value)
        for owner in module.modules()
        for name, value in owner._buffers.items()
        if value is not None and name.endswith(NAME)
    ]
    yield
    for owner, name, value in before:
        now = owner._buffers[name]
        if now is not None and now.dtype != value.dtype:
            owner._buffers[name] = value.to(now.device)


def converted(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The module itself, its weights converted.

    Args:
        module: The module.
        dtype: The precision; None leaves it as it is.
    """
    if dtype is not None:
        with exact_frequencies(module):
            module.to(dtype)
    return module
