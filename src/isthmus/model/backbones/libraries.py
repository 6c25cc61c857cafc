"""timm, Transformers and open_clip models in the one form that `VisionEncoder` needs.

What a model is like (its grid, its class and register tokens, its layout) is read off its
structure and its output, not off a table of class names.

Letters: B images, N patches, D width, (h, w) rows and columns of a feature map.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError, MissingExtraError
from isthmus.model.backbones.backbone import Backbone, Preprocess
from isthmus.model.backbones.inner_towers import inner_features
from isthmus.model.backbones.stages import timm_regions, timm_stages


def from_object(model: nn.Module, config: VisionConfig, processor: Any = None) -> Backbone:
    """Finds out which library a model is from.

    Args:
        model: A timm model; a Transformers vision model or dual encoder; an open_clip model or
            its visual tower.
        config: Which of its features are wanted.
        processor: A Transformers image processor.

    Raises:
        ConfigError: If it is none of these.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return from_transformers(model, config, processor)
    if hasattr(model, "forward_features"):
        return from_timm(model, config)
    if hasattr(model, "visual") or type(model).__module__.startswith("open_clip"):
        return from_open_clip(model, config)
    raise ConfigError(
        f"{type(model).__name__} is not a timm, Transformers or open_clip vision model; give it "
        "the form of isthmus.model.backbones.vision.Backbone and pass "
        "VisionEncoder(backbone, config)"
    )


def _pair(value: Any) -> tuple[int, int]:
    """(H, W) of what libraries write as one number or as two."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def _normed(config: VisionConfig) -> bool:
    """Whether the final norm is asked for.

    Raises:
        ConfigError: If another layer than the last is.
    """
    if config.final_norm and config.feature_layer != -1:
        raise ConfigError(
            f"final_norm = true with feature_layer = {config.feature_layer}: expected -1, the last "
            "layer, which the final norm was trained behind"
        )
    return config.final_norm


def _no_such_layer(layer: int, model: nn.Module, layers: int) -> ConfigError:
    return ConfigError(
        f"feature_layer is {layer}: {type(model).__name__} has layers -1 (the last) to -{layers}"
    )


# --- timm ----------------------------------------------------------------------------------------


def from_timm(model: Any, config: VisionConfig) -> Backbone:
    """A timm model.

    Layer -1 is `forward_features`, final norm included; -2 and below are the outputs of earlier
    blocks of a transformer, or stages of a convolutional network, by timm's own
    `forward_intermediates`, without a norm.

    Raises:
        ConfigError: If it has no such layer.
    """
    import timm.data

    data = timm.data.resolve_model_data_config(model)
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    if size is not None:  # what the model was built for, whatever its weights were trained at
        data["input_size"] = (3, *_pair(size))
    _normed(config)
    layers = len(getattr(model, "feature_info", ()))
    if config.feature_layer != -1 and not -layers <= config.feature_layer < -1:
        raise _no_such_layer(config.feature_layer, model, max(layers, 1))
    # Windowed transformers (Swin) lack the attribute too, but put channels last
    transformer = hasattr(model, "num_prefix_tokens") or hasattr(model, "output_fmt")
    staged = not transformer and hasattr(model, "forward_intermediates")
    classes = staged and bool(getattr(model, "num_classes", 0))
    return Backbone(
        model=model if transformer else model.to(memory_format=torch.channels_last),
        features=partial(_timm_features, model, config.feature_layer, not transformer),
        preprocess=timm.data.create_transform(**data, is_training=False),
        size=_pair(data["input_size"][1:]),
        prefix=getattr(model, "num_prefix_tokens", 0),
        mean=data["mean"],
        std=data["std"],
        convolutional=not transformer,
        grid=getattr(patch_embed, "grid_size", None),
        stages=partial(timm_stages, model, False) if staged else None,
        scores=partial(timm_stages, model, True) if classes else None,
        regions=partial(timm_regions, model) if classes else None,
        strides=tuple(int(stage["reduction"]) for stage in model.feature_info) if staged else (),
    )


def _timm_features(model: Any, layer: int, channels_last: bool, pixels: Tensor) -> Tensor:
    if channels_last:  # the layout in which convolutions are fastest; the values are the same
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if layer == -1:
        last: Tensor = model.forward_features(pixels)
        if last.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        return last
    options: dict[str, Any] = {"indices": -layer, "intermediates_only": True, "stop_early": True}
    if "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters:
        options |= {"output_fmt": "NLC", "return_prefix_tokens": True}
    kept = model.forward_intermediates(pixels, **options)[0]
    if isinstance(kept, tuple):
        patches, prefix = kept
        return torch.cat([prefix, patches], dim=1)
    found: Tensor = kept
    return found


# --- Transformers --------------------------------------------------------------------------------


def from_transformers(model: Any, config: VisionConfig, processor: Any = None) -> Backbone:
    """A Transformers vision model, or the vision tower of a dual encoder.

    Layers index `hidden_states`, as LLaVA does (Liu et al. 2023, section 4.1): in CLIP, SigLIP,
    ViT and DINOv2, -1 is the last block's output before any final norm, -2 the one before it. With
    `final_norm` they are the tower's own `last_hidden_state` (in CLIP the same as -1).

    The size of its input is what its processor makes of an image (DINOv2's is 224 where the
    model's configuration says 518), and without a processor what its configuration says.
    """
    tower = model
    while hasattr(tower, "vision_model"):
        tower = tower.vision_model
    size = _pair(getattr(tower.config, "image_size", None) or 224)
    mean = std = None
    if processor is not None:
        size = _processed_size(processor) or size
        normal = getattr(processor, "do_normalize", True)
        mean = processor.image_mean if normal else (0.0,) * 3
        std = processor.image_std if normal else (1.0,) * 3
    patch = getattr(tower.config, "patch_size", None)
    rows, columns = _pair(patch) if patch else (0, 0)
    normed = _normed(config)
    inner = inner_features(tower, config.feature_layer, normed)
    if normed:
        own = partial(_transformers_last, tower)
    else:
        own = partial(_transformers_features, tower, config.feature_layer)
    # behind its norm DINOv3's ConvNeXt has the mean of all places in front of them
    pooled = normed and tower.config.model_type == "dinov3_convnext"
    return Backbone(
        model=tower,
        features=inner or own,
        preprocess=partial(_process, processor, type(model).__name__),
        size=size,
        prefix=1 if pooled else None,
        mean=mean,
        std=std,
        grid=(size[0] // rows, size[1] // columns) if patch else None,
        processor=processor,
    )


def _transformers_features(tower: Any, layer: int, pixels: Tensor) -> Tensor:
    output = tower(pixel_values=pixels, output_hidden_states=True)
    states = output.hidden_states
    if states is None:  # some models record none
        states = (output.last_hidden_state,)
    if not -len(states) <= layer < len(states):
        raise _no_such_layer(layer, tower, len(states))
    found: Tensor = states[layer]
    return found


def _transformers_last(tower: Any, pixels: Tensor) -> Tensor:
    found: Tensor = tower(pixel_values=pixels).last_hidden_state
    return found


def _process(processor: Any, name: str, image: Image.Image) -> Tensor:
    if processor is None:
        raise ConfigError(
            f"{name} was handed in as an object, without its preprocessing: pass preprocess= to "
            "load_vision, a Transformers image processor or a function from an image to pixels"
        )
    pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
    return pixels


def _processed_size(processor: Any) -> tuple[int, int] | None:
    """(H, W) that a processor makes of any image; None if that depends on the image.

    Raises:
        ConfigError: If it cuts an image into something other than one (3, H, W) array.
    """
    wide, tall = (
        _process(processor, "", Image.new("RGB", size)) for size in ((640, 480), (480, 640))
    )
    if wide.ndim != 3 or wide.shape[0] != 3:
        raise ConfigError(
            f"{type(processor).__name__} makes {tuple(wide.shape)} of an image: expected "
            "(3, H, W); take a model of the family with a fixed resolution"
        )
    return _pair(wide.shape[1:]) if wide.shape == tall.shape else None


# --- open_clip -----------------------------------------------------------------------------------


def open_clip_library() -> Any:
    """The library.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("an open_clip vision encoder", "clip") from error
    return open_clip


def from_open_clip(model: Any, config: VisionConfig, transform: Any = None) -> Backbone:
    """An open_clip model's visual tower, before pooling and projection.

    Since open_clip 2.23 its own token output passes through the final LayerNorm (`ln_post`),
    before it did not, and OpenFlamingo's released weights expect the latter. Here every layer of
    a ViT, -1 included, is a block's output *without* `ln_post`, whatever the version, unless
    `final_norm` asks for it. A tower that
    is a timm model inside (SigLIP's) follows timm's rule instead: -1 with its final norm.

    Raises:
        ConfigError: If it is no transformer, or has no such layer.
    """
    visual = getattr(model, "visual", model)
    if transform is None:
        transform = open_clip_transform(visual)
    if hasattr(visual, "trunk"):
        mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
        backbone = from_timm(visual.trunk, config)
        return replace(backbone, preprocess=transform, mean=mean, std=std)
    if not hasattr(visual, "transformer"):
        raise ConfigError(
            f"open_clip's {type(visual).__name__} has no patch tokens: name a ViT, or take the "
            "same tower from timm"
        )
    layers = len(visual.transformer.resblocks)
    if not -layers <= config.feature_layer <= -1:
        raise _no_such_layer(config.feature_layer, visual, layers)
    mean, std = _open_clip_normalisation(visual)
    return Backbone(
        model=visual,
        features=partial(_open_clip_features, visual, config.feature_layer, _normed(config)),
        preprocess=transform,
        size=_pair(visual.image_size),
        prefix=1,
        mean=mean,
        std=std,
        grid=_pair(visual.grid_size),
    )


def _open_clip_features(visual: Any, layer: int, normed: bool, pixels: Tensor) -> Tensor:
    kept = visual.forward_intermediates(
        pixels,
        indices=-layer,
        stop_early=True,
        intermediates_only=True,
        normalize_intermediates=normed,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    patches: Tensor = kept["image_intermediates"][0]
    prefix: Tensor = kept["image_intermediates_prefix"][0]
    return torch.cat([prefix, patches], dim=1)


def _open_clip_normalisation(visual: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, by default those of OpenAI's CLIP, as in open_clip itself."""
    library = open_clip_library()
    told = getattr(visual, "preprocess_cfg", {})
    mean = told.get("mean") or getattr(visual, "image_mean", None) or library.OPENAI_DATASET_MEAN
    std = told.get("std") or getattr(visual, "image_std", None) or library.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def open_clip_transform(visual: Any) -> Preprocess:
    """The evaluation transform that open_clip's factory would have made."""
    library = open_clip_library()
    mean, std = _open_clip_normalisation(visual)
    told = {"size": visual.image_size, "mean": mean, "std": std}
    told |= getattr(visual, "preprocess_cfg", {})
    settings = library.transform.PreprocessCfg(**told)
    transform: Preprocess = library.transform.image_transform_v2(settings, is_train=False)
    return transform
