"""Telling one frozen model from another without reading all of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """A hash of the architecture and of a sample of the frozen weights.

    It covers every tensor's name, shape and 64 of its values, so a fine-tuned model differs
    from the one it came from. Values are rounded to bf16, so that a model loaded in half
    precision is still the same model. LoRA adapters are left out: they are not frozen.

    Args:
        model: Any module.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> fingerprint(layer) == fingerprint(layer.bfloat16())
        True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
        digest.update(f"{name.replace('.base_layer', '')} {tuple(tensor.shape)}".encode())
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
