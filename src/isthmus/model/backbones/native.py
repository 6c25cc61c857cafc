"""Vision towers that read each image at its own resolution: Qwen2-VL's to 3-VL's, and NaFlex.

The number of patches varies with the image (Wang et al. 2024, Qwen2-VL, arXiv 2409.12191, section
2.1). An image is opened to pixels (3, H, W) whose sides are multiples of a square of patches, so
that their shape tells the grid, and the tower is shown its patches as its processor lays them out:
the patches of a square one behind another, square by square. Features keep this order.

What Qwen's towers do behind their last block, merging each square to one token, is not theirs here:
that is the connector `merger`. SigLIP 2's are in `naflex`, other families' in `native_towers`.

Letters: P images of one size, N patches each, D width, m patches to the side of a square.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError, ImageError
from isthmus.model.backbones import naflex, native_towers
from isthmus.model.backbones.backbone import Backbone
from isthmus.model.backbones.feature_shape import NativeGrid

TOWERS = (
    *("qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision"),
    *("qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision"),
)
"""Towers of Qwen's, by their model types."""
TYPICAL = 448
"""Side in pixels of the image that counts as a typical one."""


def is_native(model: nn.Module) -> bool:
    """Whether a model is a tower of native resolution, or has one."""
    kind = getattr(getattr(_tower_of(model), "config", None), "model_type", "")
    return kind in (*TOWERS, *naflex.TOWERS, *native_towers.TOWERS)


def _tower_of(model: Any) -> Any:
    while hasattr(model, "vision_model"):
        model = model.vision_model
    return model


def from_native(model: Any, config: VisionConfig, processor: Any = None) -> Backbone:
    """A tower of native resolution.

    The tower itself is left as it is; of Qwen's the backbone's model has all modules but for the
    mergers.

    Args:
        model: The tower, or a dual encoder that has one.
        config: Which of its features are wanted: with `deepstack` those of the layers that
            Qwen3-VL reads stand behind the last one's, in their order.
        processor: Its image processor.

    Raises:
        ConfigError: If features are asked for that it does not give.
    """
    tower = _tower_of(model)
    name = type(tower).__name__
    deepstack = len(getattr(tower.config, "deepstack_visual_indexes", ()))
    if config.deepstack and not deepstack:
        raise ConfigError(
            "deepstack = true needs a tower whose earlier layers are read, as Qwen3-VL's: "
            f"{name} has none"
        )
    refuse_other_features(tower, config)
    native = native_towers.grid_of(tower)
    side = TYPICAL // native.multiple * native.multiple
    size = (side, side)
    if processor is not None:
        blank = native_pixels(processor, Image.new("RGB", (TYPICAL, TYPICAL)))
        size = (int(blank.shape[1]), int(blank.shape[2]))
    if tower.config.model_type in native_towers.TOWERS:
        features = partial(_other_features, tower, native)
    elif tower.config.model_type in naflex.TOWERS:
        features = partial(naflex.naflex_features, tower, config, native)
    else:
        tower = without_mergers(tower)
        features = partial(_features, tower, native, deepstack if config.deepstack else 0)
    return Backbone(
        model=tower,
        features=features,
        preprocess=partial(_preprocess, processor, name),
        size=size,
        prefix=0,
        mean=None if processor is None else processor.image_mean,
        std=None if processor is None else processor.image_std,
        processor=processor,
        native=native,
    )


def refuse_other_features(tower: Any, config: VisionConfig) -> None:
    """Refuses features that a tower does not give.

    Raises:
        ConfigError: If class tokens are asked for, or another layer than the last of others than
            NaFlex's.
    """
    other = config.feature_layer != -1 or config.final_norm
    if config.keep_cls or (other and tower.config.model_type not in naflex.TOWERS):
        raise ConfigError(
            f"{type(tower).__name__} gives the features of its last block, without a class token: "
            "expected feature_layer = -1, final_norm = false and keep_cls = false"
        )
    if config.final_norm and config.feature_layer != -1:
        raise ConfigError(
            f"final_norm = true with feature_layer = {config.feature_layer}: expected -1, the last "
            "layer, which the final norm was trained behind"
        )


class Unmerged(nn.Module):
    """Stands in place of a merger: the patches of a square side by side, and nothing else."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, states: Tensor) -> Tensor:
        """(n / m^2, m^2 D) of (n, D)."""
        return states.reshape(-1, self.patches * states.shape[-1])


def without_mergers(tower: nn.Module) -> nn.Module:
    """A tower of the same modules that does not merge."""
    made: Any = copy.copy(tower)
    made._modules = dict(tower._modules)
    square = int(made.config.spatial_merge_size) ** 2
    made.merger = Unmerged(square)
    if "deepstack_merger_list" in made._modules:
        count = len(made.deepstack_merger_list)
        made.deepstack_merger_list = nn.ModuleList(Unmerged(square) for _ in range(count))
    found: nn.Module = made
    return found


def _features(tower: Any, native: NativeGrid, deepstack: int, pixels: Tensor) -> Tensor:
    """(P, N, (1 + deepstack) D) of pixels (P, 3, H, W)."""
    count, _, height, width = pixels.shape
    grid = torch.tensor([[1, height // native.patch, width // native.patch]] * count)
    frames = int(tower.config.temporal_patch_size)
    patches = patches_of(pixels, native, frames)
    out = tower(patches, grid_thw=grid.to(pixels.device))
    levels = [out.pooler_output]
    if deepstack:
        levels += out.deepstack_features
    patches_each = height * width // native.patch**2
    return torch.cat([level.reshape(count, patches_each, -1) for level in levels], dim=-1)


def _other_features(tower: Any, native: NativeGrid, pixels: Tensor) -> Tensor:
    frames = int(getattr(tower.config, "temporal_patch_size", 1))
    return native_towers.tower_features(tower, native, patches_of(pixels, native, frames), pixels)


def patches_of(pixels: Tensor, native: NativeGrid, frames: int) -> Tensor:
    """Patches (P * N, 3 * frames * patch^2) of pixels (P, 3, H, W), square by square.

    Each patch is there `frames` times, since these towers read two frames at once.

    Example:
        >>> pixels = torch.arange(48.0).view(1, 3, 4, 4)
        >>> patches_of(pixels, NativeGrid(patch=1, merge=2), frames=1)[:, 0].tolist()[:6]
        [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]
    """
    patch, merge = native.patch, native.merge
    count, channels, height, width = pixels.shape
    x = pixels.reshape(
        count,
        channels,
        height // native.multiple,
        merge,
        patch,
        width // native.multiple,
        merge,
        patch,
    )
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (P, row, column, row in square, column, 3, y, x)
    x = x.unsqueeze(6).expand(*x.shape[:6], frames, patch, patch)
    return x.reshape(-1, channels * frames * patch**2)


def pixels_of(patches: Tensor, rows: int, columns: int, native: NativeGrid) -> Tensor:
    """Pixels (3, H, W) of one image's patches (rows * columns, ...): `patches_of` undone.

    Example:
        >>> pixels, native = torch.arange(96.0).view(1, 3, 4, 8), NativeGrid(patch=2, merge=2)
        >>> torch.equal(pixels_of(patches_of(pixels, native, 2), 2, 4, native), pixels[0])
        True
    """
    patch, merge = native.patch, native.merge
    x = patches.reshape(rows // merge, columns // merge, merge, merge, 3, -1, patch, patch)
    x = x[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6)  # the first of the equal frames
    return x.reshape(3, rows * patch, columns * patch)


def native_pixels(
    processor: Any,
    image: Image.Image,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Pixels (3, H, W) that a processor of Qwen2-VL's manner, or of NaFlex's, makes of an image.

    Args:
        processor: The image processor.
        image: The image.
        min_pixels: Least pixels of what it is resized to; None for the processor's own number.
        max_pixels: Most of them.

    Raises:
        ImageError: If it is more than 200 times as long as wide.
    """
    if hasattr(processor, "max_num_patches"):
        return naflex.naflex_pixels(processor, image, min_pixels=min_pixels, max_pixels=max_pixels)
    if native_towers.takes(processor):
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        return native_towers.tower_pixels(processor, image, **limits)
    options: dict[str, Any] = {}
    if min_pixels is not None or max_pixels is not None:
        own = processor.size
        options["size"] = {
            "shortest_edge": own["shortest_edge"] if min_pixels is None else min_pixels,
            "longest_edge": own["longest_edge"] if max_pixels is None else max_pixels,
        }
    try:
        made = processor(images=image, return_tensors="pt", **options)
    except ValueError as error:
        raise ImageError(
            f"the model's processor takes no image of {image.width} x {image.height}: {error}"
        ) from error
    native = NativeGrid(int(processor.patch_size), int(processor.merge_size))
    _, rows, columns = made["image_grid_thw"][0].tolist()
    return pixels_of(made["pixel_values"], rows, columns, native)


def _preprocess(processor: Any, name: str, image: Image.Image) -> Tensor:
    if processor is None:
        raise ConfigError(
            f"{name} was handed in as an object, without its preprocessing: pass preprocess= to "
            "load_vision, the image processor of its repository"
        )
    return native_pixels(processor, image)
