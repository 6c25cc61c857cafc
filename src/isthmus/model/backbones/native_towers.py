"""Towers of native resolution that are neither Qwen's nor NaFlex: Pixtral, GLM-4V, Kimi's MoonViT.

Each gives the features of its last block, behind its final norm where it has one, and nothing that
its own model does after: Pixtral of Mistral (arXiv 2410.07073, section 2.2), GLM-4.1V (arXiv
2507.01006, section 2), MoonViT of Kimi-VL (arXiv 2504.07491, section 2.1), as Transformers' Kimi
K2.5 has it.

Letters: P images of one size, N patches each, D width, m patches to the side of a square.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.model.backbones.feature_shape import NativeGrid

PIXTRAL, KIMI = ("pixtral",), ("kimi_k25_vision",)
GLM = ("glm4v_vision", "glm4v_moe_vision")
TOWERS = (*PIXTRAL, *KIMI, *GLM)
"""Towers of these kinds, by their model types."""


def grid_of(tower: Any) -> NativeGrid:
    """How a tower's images are cut up.

    Example:
        >>> from transformers import PixtralVisionConfig, PixtralVisionModel
        >>> with torch.device("meta"):
        ...     tower = PixtralVisionModel(PixtralVisionConfig(num_hidden_layers=1))
        >>> grid_of(tower)
        NativeGrid(patch=16, merge=1)
    """
    kernel = getattr(tower.config, "merge_kernel_size", (1, 1))
    merge = getattr(tower.config, "spatial_merge_size", None) or kernel[0]
    return NativeGrid(int(tower.config.patch_size), int(merge))


def tower_features(tower: Any, native: NativeGrid, patches: Tensor, pixels: Tensor) -> Tensor:
    """Features (P, N, D) of pixels (P, 3, H, W), square by square.

    Args:
        tower: The tower.
        native: How its images are cut up.
        patches: What GLM-4V's tower is shown, as `native.patches_of` makes it.
        pixels: The same images.
    """
    count, channels, height, width = pixels.shape
    rows, columns = height // native.patch, width // native.patch
    kind = tower.config.model_type
    if kind in PIXTRAL:
        found: Tensor = tower(pixel_values=pixels).last_hidden_state
        return found.reshape(count, rows * columns, -1)
    grid = torch.tensor([[1, rows, columns]] * count, device=pixels.device)
    if kind in GLM:
        return _last_normed(tower, tower.post_layernorm, patches, grid).reshape(
            count, rows * columns, -1
        )
    side = native.patch
    cut = pixels.reshape(count, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    states = tower(cut.reshape(-1, channels, side, side), grid_thw=grid).last_hidden_state
    m = native.merge
    squares = states.reshape(count, rows // m, m, columns // m, m, -1).transpose(2, 3)
    return squares.reshape(count, rows * columns, -1)


def _last_normed(tower: Any, norm: nn.Module, patches: Tensor, grid: Tensor) -> Tensor:
    """What a tower's last norm says: behind it GLM-4V merges patches, which is the connector's."""
    kept: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        tower(patches, grid_thw=grid)
    finally:
        handle.remove()
    return kept[-1]


def takes(processor: Any) -> bool:
    """Whether a processor is Pixtral's or Kimi's, whose images are laid out in another way."""
    return hasattr(processor, "max_patches") or not hasattr(processor, "merge_size")


def tower_pixels(
    processor: Any,
    image: Image.Image,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Pixels (3, H, W) that Pixtral's or Kimi's processor makes of an image.

    Args:
        processor: The image processor.
        image: The image.
        min_pixels: None: neither enlarges an image.
        max_pixels: Most pixels of what the image is resized to; None for the processor's number.

    Raises:
        ConfigError: If `min_pixels` is set.
    """
    if min_pixels is not None:
        raise ConfigError(
            f"min_pixels = {min_pixels}: {type(processor).__name__} never enlarges an image; leave "
            "it out, and set max_pixels"
        )
    options: dict[str, Any] = {}
    if not hasattr(processor, "max_patches"):
        if max_pixels is not None:
            options["size"] = {"longest_edge": max(1, math.isqrt(max_pixels))}
        made = processor(images=image, return_tensors="pt", **options)
        found: Tensor = made["pixel_values"][0]
        return found
    patch = int(processor.patch_size)
    if max_pixels is not None:
        options["max_patches"] = max(1, max_pixels // patch**2)
    made = processor(images=image, return_tensors="pt", **options)
    _, rows, columns = made["image_grid_thw"][0].tolist()
    patches = made["pixel_values"].reshape(rows, columns, 3, patch, patch)
    whole: Tensor = patches.permute(2, 0, 3, 1, 4).reshape(3, rows * patch, columns * patch)
    return whole
