"""The frozen parts that a saved model was trained between: found again, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.config.model import LanguageConfig, ModelConfig, VisionConfig
from isthmus.errors import CheckpointError, ConfigError
from isthmus.machine import check_engine, device_for, int8_for
from isthmus.model.backbones.fast_path import take_fast_path
from isthmus.model.backbones.int8_layers import to_int8
from isthmus.model.backbones.language import LanguageModel, load_language
from isthmus.model.backbones.placement import is_dispatched
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.join import strip_device
from isthmus.model.vlm import VisionLanguageModel


def frozen_parts(model: VisionLanguageModel) -> dict[str, nn.Module]:
    """What a model was joined of and does not save, by the name that a checkpoint has for it."""
    parts: dict[str, nn.Module] = {"vision": model.vision.model, "language": model.language.model}
    for medium in (m for m in model.media if m.name in model.saved_media):
        encoder = getattr(medium, "encoder", None)
        if isinstance(encoder, nn.Module):
            parts[medium.name] = encoder
    return parts


def saved_encoder(source: Any, config: VisionConfig, folder: Path) -> VisionEncoder:
    """The saved vision encoder, or the one handed in, giving the features that were trained on."""
    if source is None and config.name.startswith("object:"):
        raise CheckpointError(
            f"{folder} was trained with a vision encoder that was handed in as an object "
            f"({config.name.partition(':')[2]}): pass it as load(..., vision=...)"
        )
    if isinstance(source, (VisionEncoder, VisionConfig)):
        encoder = load_vision(source)
    elif source is not None:
        # Its weights say nothing of the layer that was read, so the fingerprint cannot either
        try:
            encoder = load_vision(
                source,
                feature_layer=config.feature_layer,
                final_norm=config.final_norm,
                keep_cls=config.keep_cls,
                resize=config.resize,
                regions=config.regions,
                fine=config.fine,
                deepstack=config.deepstack,
            )
        except ConfigError as error:
            raise CheckpointError(
                f"{folder} cannot have the vision encoder that was passed: {error}"
            ) from error
    else:
        encoder = load_vision(config)
    for key in ("feature_layer", "final_norm", "keep_cls", "regions", "fine", "deepstack"):
        got, expected = getattr(encoder.config, key), getattr(config, key)
        if got != expected:
            raise CheckpointError(
                f"the vision encoder's {key} is {got}: {folder} was trained with {expected}; pass "
                f"load_vision(..., {key}={expected})"
            )
    return encoder


def saved_language(
    source: Any,
    config: LanguageConfig,
    tokenizer: Any,
    folder: Path,
    device_map: Any = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The saved language model, or the one handed in, with the adapters that were trained.

    Args:
        source: The one handed in; None for the saved one.
        config: The saved one's.
        tokenizer: Of the one handed in.
        folder: Where it was saved, for messages.
        device_map: As for `load_language`.
        dtype: That of a language model that a map places; others are converted with the whole.
    """
    if source is None and config.name == "hf:object":
        raise CheckpointError(
            f"{folder} was trained with a language model that was handed in as an object: pass "
            "it as load(..., language=..., tokenizer=...)"
        )
    return load_language(
        config if source is None else source,
        tokenizer=tokenizer,
        layers=config.layers,
        lora_rank=config.lora_rank,
        dtype=None if device_map is None else dtype,
        device_map=device_map,
    )


def refuse_other_part(
    folder: Path, description: Mapping[str, Any], part: str, got: str, config: ModelConfig
) -> None:
    """Refuses a frozen part that is not the one the strip was trained with."""
    expected = description["parts"].get(part)
    if expected == got:
        return
    name = getattr(getattr(config, part, None), "name", part)
    raise CheckpointError(
        f'{folder} was trained with the {part} model "{name}" of fingerprint '
        f"{expected}; this one has {got}: other weights, or another model"
    )


def dtype_under(
    engine: str, dtype: str | torch.dtype | None, device_map: Any
) -> str | torch.dtype | None:
    """The data type of weights under an engine: llama.cpp takes the values of float32 as they are.

    Raises:
        ConfigError: If the engine is unknown, or has no use for a map of PyTorch's devices.
        MissingExtraError: If it is not installed.
    """
    check_engine(engine)
    if engine != "llama":
        return dtype
    if device_map is not None:
        raise ConfigError(
            'device_map lays layers over PyTorch\'s devices, and under engine="llama" llama.cpp '
            "computes: leave one of them out"
        )
    return "float32" if dtype == "auto" else dtype


def int8_beside(
    dtype: str | torch.dtype | None, place: torch.device, device_map: Any, language: Any
) -> bool:
    """Whether the language model computes in int8: never one that a map places.

    Accelerate calls its layers in ways of its own, and their weights may be elsewhere.

    Args:
        dtype: As for `load_vlm`; "int8" is then refused by `dtype_for`, as it is for encoders.
        place: Where the strip will be.
        device_map: As for `load_vlm`.
        language: The one handed in, if any.
    """
    laid = device_map is not None or getattr(language, "device_map", None) is not None
    laid = laid or (isinstance(language, nn.Module) and is_dispatched(language))
    return not laid and int8_for(dtype, place)


def placed(
    model: VisionLanguageModel,
    device: str | torch.device,
    dtype: torch.dtype,
    int8: bool,
    engine: str = "torch",
) -> VisionLanguageModel:
    """The model, moved and converted; in int8 its language model and the blocks inside of it.

    A language model that a map places stays as it is, and the rest goes to where it begins.
    """
    language = model.language
    place = strip_device(language, device, model.config.fusion) if language.placed else device
    model = model.to(device=device_for(place), dtype=dtype)
    for part in (model.language.model, *model.fusion.blocks.values()) if int8 else ():
        to_int8(part)
        take_fast_path(part)
    model.engine = engine
    return model
