"""`FastVlmForConditionalGeneration`: a convolutional network of timm, two linear layers, a decoder.

timm's transformers are no such network: their tokens are no map. Transformers makes the network by
its name in timm, so timm must be installed where the model runs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isthmus.config.model import ModelConfig
from isthmus.errors import ExportError
from isthmus.exporting.language import (
    INSTEAD,
    dtype_name,
    language_tensors,
    refuse_other_heads,
    text_config,
)
from isthmus.exporting.llava import FITTED, has_bias, projector_tensors, why_no_projector
from isthmus.exporting.tokens import WrittenTokens
from isthmus.model.vlm import VisionLanguageModel

ARCHITECTURE = "FastVlmForConditionalGeneration"
SCHEMES = ("timm", "asset")
RESAMPLE = {"bilinear": 2, "bicubic": 3}


def why_not(config: ModelConfig) -> str:
    """Why a model of a configuration has no form as FastVLM; empty if it has one."""
    vision = config.vision
    if why := why_no_projector(config, ARCHITECTURE):
        return why
    if vision.regions or vision.feature_layer != -1:
        return (
            f"its vision encoder gives more than its last map (regions, or feature_layer = "
            f"{vision.feature_layer}), and {ARCHITECTURE} reads that alone: expected regions = "
            f"false and feature_layer = -1; {INSTEAD}"
        )
    if vision.resize == "pad":
        return (
            'its vision encoder sees images padded with white (resize = "pad"), and no image '
            "processor of Transformers does that before a convolutional network: expected resize = "
            f'"own" or "squash"; {INSTEAD}'
        )
    return ""


def refuse_others(model: VisionLanguageModel) -> None:
    """Refuses what only the loaded parts tell.

    Raises:
        ExportError: If the network has no map, or no name in timm, or the language model has no
            place in the class.
    """
    import timm

    vision, name = model.vision, model.vision.config.name
    network: Any = vision.model
    if hasattr(network, "num_prefix_tokens") or hasattr(network, "output_fmt"):
        raise ExportError(
            f"{name} is a {type(network).__name__}, a transformer of timm, and {ARCHITECTURE} "
            "reads the map of a convolutional network: expected one, or a CLIP or SigLIP of "
            f"Transformers (hf:...) to be written as LLaVA; {INSTEAD}"
        )
    told = _architecture(model)
    with torch.device("meta"):
        made = timm.create_model(told, num_classes=0).state_dict() if timm.is_model(told) else {}
    own = network.state_dict()
    if not made or any(n not in own or own[n].shape != made[n].shape for n in made):
        raise ExportError(
            f"{name} is not a network that timm makes by name (got {told!r}), and {ARCHITECTURE} "
            f"makes it so: expected timm:NAME; {INSTEAD}"
        )
    _patch_size(model)
    _fitted(model)
    refuse_other_heads(model.language, ARCHITECTURE)


def config_of(model: VisionLanguageModel, added: WrittenTokens) -> Any:
    """The `FastVlmConfig`."""
    from transformers import FastVlmConfig

    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": _architecture(model),
            "do_pooling": False,
            "hidden_size": model.vision.shape.width,
            "dtype": dtype_name(model),
        },
        text_config=text_config(model, added),
        image_token_index=added.image_id,
        image_seq_length=model.vision.shape.tokens,
        projector_hidden_act="gelu",
        multimodal_projector_bias=has_bias(model),
        tie_word_embeddings=added.tied,
        dtype=dtype_name(model),
    )
    config.architectures = [ARCHITECTURE]
    return config


def processor_of(model: VisionLanguageModel, added: WrittenTokens, template: str) -> Any:
    """A `LlavaProcessor`, as FastVLM has one; CLIP's image processor does what timm's transform."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**_fitted(model)),
        tokenizer=added.tokenizer,
        patch_size=_patch_size(model),
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=added.image,
        chat_template=template,
    )


def tensors_of(
    model: VisionLanguageModel, added: WrittenTokens, *, merge: bool
) -> dict[str, Tensor]:
    """Every tensor by its name on the disk; a classifier is left out."""
    import timm

    with torch.device("meta"):
        kept = timm.create_model(_architecture(model), num_classes=0).state_dict().keys()
    own = model.vision.model.state_dict()
    tensors = {f"model.vision_tower.timm_model.{name}": own[name] for name in kept}
    projector = projector_tensors(model)
    tensors |= {f"model.multi_modal_projector.{name}": t for name, t in projector.items()}
    for name, tensor in language_tensors(model, added, merge=merge).items():
        inner = "" if name.startswith("lm_head.") else "model.language_model."
        tensors[f"{inner}{name}"] = tensor
    return tensors


def moved_pixels(model: VisionLanguageModel) -> Tensor:
    """Nothing: they are the same, (3, 1, 1)."""
    return torch.zeros(3, 1, 1)


def notes_of(model: VisionLanguageModel) -> list[str]:
    """What whoever runs the export elsewhere should know."""
    return ["timm must be installed where the model runs: Transformers makes the encoder with it"]


def _architecture(model: VisionLanguageModel) -> str:
    """The network's name in timm; empty if it has none."""
    told: Any = getattr(model.vision.model, "pretrained_cfg", None) or {}
    return str(told.get("architecture") or "")


def _patch_size(model: VisionLanguageModel) -> int:
    """The largest side of squares of which an image has as many as its map has places.

    Raises:
        ExportError: If there is none.
    """
    (height, width), grid = model.vision.image_size, model.vision.shape.grid
    rows, columns = grid or (0, 0)
    for size in range(height, 0, -1):
        if (height // size, width // size) == (rows, columns):
            return size
    raise ExportError(
        f"{model.vision.config.name} makes a map of {rows} x {columns} places of {height} x "
        f"{width} pixels, a number that no patch size of a LlavaProcessor gives; {INSTEAD}"
    )


def _fitted(model: VisionLanguageModel) -> dict[str, Any]:
    """How CLIP's image processor makes the pixels of the encoder's own preprocessing.

    Raises:
        ExportError: If it cannot.
    """
    import timm

    vision = model.vision
    height, width = vision.image_size
    mean, std = (list(values or ()) for values in vision.normalisation)
    values = {**FITTED, "do_normalize": True, "image_mean": mean, "image_std": std}
    whole = {"height": height, "width": width}
    if vision.config.resize == "squash":
        return {**values, "size": whole}
    told = timm.data.resolve_model_data_config(vision.model)
    values["resample"] = RESAMPLE.get(told["interpolation"])
    if values["resample"] is None or told["crop_mode"] not in ("center", "squash"):
        raise ExportError(
            f"{vision.config.name} has a preprocessing ({told['crop_mode']}, "
            f"{told['interpolation']}) that no image processor of Transformers repeats: expected "
            f'resize = "squash"; {INSTEAD}'
        )
    scaled = [math.floor(side / told["crop_pct"]) for side in (height, width)]
    values |= {"do_center_crop": True, "crop_size": whole}
    if told["crop_mode"] == "center" and height == width:
        return {**values, "size": {"shortest_edge": scaled[0]}}
    return {**values, "size": {"height": scaled[0], "width": scaled[1]}}
