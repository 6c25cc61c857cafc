"""Towers of Transformers that hold more than an encoder: Llama 4's and Ovis 2's.

Llama 4's ends in a pixel shuffle and an MLP, and has its class token behind the patches. Ovis 2's
ends in a head that chooses words of a visual vocabulary. Both are its model's connector, so what is
given here are the blocks' outputs: layer -1 the last one's, with `final_norm` behind the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError

Layered = Callable[[Tensor], Tensor]


def inner_features(tower: Any, layer: int, normed: bool) -> Layered | None:
    """Pixels to features, class token in front; None of a tower that holds no more than an encoder.

    Args:
        tower: The tower.
        layer: -1 the last block's output, -2 the one before it, and so on.
        normed: Whether it goes through the final norm.

    Raises:
        ConfigError: If there is no such layer.
    """
    kind = getattr(tower.config, "model_type", "")
    if kind == "llama4_vision_model":
        layers, norm, last = tower.model.layers, tower.layernorm_post, True
    elif kind == "ovis2_vision":
        inner = tower.transformer
        layers, norm, last = inner.encoder.layers, inner.rms_norm, False
    else:
        return None
    if not -len(layers) <= layer <= -1:
        raise ConfigError(
            f"feature_layer is {layer}: {type(tower).__name__} has layers -1 (the last) to "
            f"-{len(layers)}"
        )
    return partial(_features, tower, layers[layer], norm if normed else None, last)


def _features(
    tower: Any, block: nn.Module, norm: nn.Module | None, class_last: bool, pixels: Tensor
) -> Tensor:
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    try:
        tower(pixel_values=pixels)
    finally:
        handle.remove()
    states = kept[-1] if norm is None else norm(kept[-1])
    return torch.cat([states[:, -1:], states[:, :-1]], dim=1) if class_last else states
