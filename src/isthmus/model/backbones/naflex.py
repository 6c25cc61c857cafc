"""SigLIP 2's NaFlex towers, which read an image at its own aspect (arXiv 2502.14786, section 2.4).

The patches of an image, row by row, as many as its processor's number allows. Transformers pads
them to that number; here images of one size go through the tower together, and nothing is padded.

Letters: P images of one size, N patches each, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError
from isthmus.model.backbones.feature_shape import NativeGrid

TOWERS = ("siglip2_vision_model",)
"""Towers of this kind, by their model types."""


def naflex_pixels(
    processor: Any,
    image: Image.Image,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Pixels (3, H, W) that the processor makes of an image.

    Args:
        processor: A `Siglip2ImageProcessor`.
        image: The image.
        min_pixels: None: it always makes as many patches as it may.
        max_pixels: Most pixels of what the image is resized to; None for the processor's number.

    Raises:
        ConfigError: If `min_pixels` is set.
    """
    if min_pixels is not None:
        raise ConfigError(
            f"min_pixels = {min_pixels}: {type(processor).__name__} resizes every image to as many "
            "patches as it may have; leave it out, and set max_pixels"
        )
    patch = int(processor.patch_size)
    options = {}
    if max_pixels is not None:
        options["max_num_patches"] = max(1, max_pixels // patch**2)
    made = processor(images=image, return_tensors="pt", **options)
    rows, columns = made["spatial_shapes"][0].tolist()
    patches = made["pixel_values"][0, : rows * columns]
    found: Tensor = patches.reshape(rows, columns, patch, patch, 3).permute(4, 0, 2, 1, 3)
    return found.reshape(3, rows * patch, columns * patch)


def naflex_patches(pixels: Tensor, native: NativeGrid) -> Tensor:
    """Patches (P, N, patch^2 * 3) of pixels (P, 3, H, W), as the processor lays them out."""
    patch = native.patch
    count, channels, height, width = pixels.shape
    x = pixels.reshape(count, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch**2 * channels)


def naflex_features(tower: Any, config: VisionConfig, native: NativeGrid, pixels: Tensor) -> Tensor:
    """Features (P, N, D) of pixels (P, 3, H, W).

    Raises:
        ConfigError: If the tower has no such layer.
    """
    patches = naflex_patches(pixels, native)
    grid = torch.tensor([side // native.patch for side in pixels.shape[2:]], device=pixels.device)
    out = tower(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int, device=pixels.device),
        spatial_shapes=grid.expand(len(pixels), -1),
        output_hidden_states=True,
    )
    if config.final_norm:
        last: Tensor = out.last_hidden_state
        return last
    states, layer = out.hidden_states, config.feature_layer
    if not -len(states) <= layer < len(states):
        raise ConfigError(
            f"feature_layer is {layer}: {type(tower).__name__} has layers -1 (the last) to "
            f"-{len(states)}"
        )
    found: Tensor = states[layer]
    return found
