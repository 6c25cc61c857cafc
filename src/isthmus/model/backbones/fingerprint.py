"""Telling one model from another by its weights."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

PIECE = 1 << 15
"""Values that are hashed at once: so few that torch does not start threads of its own for them."""


def fingerprint(model: nn.Module, *, exact: bool = False) -> str:
    """A hash of a model's architecture and of all of its weights.

    It covers every tensor's name, shape and values, so a model in which a few rows changed differs
    from the one it came from. Values are rounded to bf16, so that a model loaded in half precision
    is still the same model. LoRA adapters are left out: they are not frozen.

    Args:
        model: Any module.
        exact: Whether values count as they are, and adapters too.

    Returns:
        16 hexadecimal digits. Hashing takes about 0.3 s for 160 M parameters on one core, and is
        spread over up to eight.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> fingerprint(layer) == fingerprint(layer.bfloat16())
        True
    """
    state = sorted(model.state_dict().items())
    if not exact:
        state = [(name, tensor) for name, tensor in state if "lora_" not in name]
    workers = max(1, min(8, os.cpu_count() or 1, len(state)))
    with ThreadPoolExecutor(workers, "isthmus-hash") as pool:  # hashing lets other threads run
        hashes = list(pool.map(lambda entry: _hash(entry[1], exact), state))
    digest = hashlib.sha256()
    for (name, tensor), values in zip(state, hashes, strict=True):
        digest.update(f"{name.replace('.base_layer', '')} {tuple(tensor.shape)}".encode())
        digest.update(values)
    return digest.hexdigest()[:16]


def _hash(tensor: Tensor, exact: bool) -> bytes:
    digest = hashlib.sha256()
    for piece in torch.split(tensor.detach().reshape(-1), PIECE):
        values = piece if exact else piece.to(torch.bfloat16)
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
