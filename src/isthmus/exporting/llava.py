"""`LlavaForConditionalGeneration`: a CLIP or SigLIP tower, two linear layers, a decoder.

Keys stand on the disk as in released LLaVA models (`vision_tower.vision_model...`,
`language_model.model...`), which every version of Transformers and other runtimes read.
"""

from __future__ import annotations

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
from isthmus.exporting.tokens import WrittenTokens
from isthmus.exporting.towers import tower_of
from isthmus.model.connectors.mlp import MLP
from isthmus.model.connectors.pixel_shuffle import PixelShuffle
from isthmus.model.vlm import VisionLanguageModel

ARCHITECTURE = "LlavaForConditionalGeneration"
FITTED = {
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}
"""How an image processor fits a whole image into its size, as `VisionEncoder.preprocess` does."""


def why_not(config: ModelConfig) -> str:
    """Why a model of a configuration has no form as LLaVA; empty if it has one."""
    vision = config.vision
    if why := why_no_projector(config, ARCHITECTURE):
        return why
    if vision.name.partition(":")[0] not in ("hf", "open_clip", "object"):
        return (
            f"its vision encoder is {vision.name} and {ARCHITECTURE} holds CLIP and SigLIP alone: "
            'expected one ("hf:...", "open_clip:...") or a convolutional network of timm; '
            f"{INSTEAD}"
        )
    return ""


def why_no_projector(config: ModelConfig, architecture: str) -> str:
    """Why a connector is not the two linear layers of a class; empty if it is."""
    connector = config.connector
    if isinstance(connector, PixelShuffle):
        return (
            "its connector is PixelShuffle, and Transformers' class with one, Idefics3, writes "
            "tokens around each image that the model has never seen: expected MLP(depth=2); "
            f"{INSTEAD}"
        )
    if not isinstance(connector, MLP):
        named = "a module of your own" if connector is None else type(connector).__name__
        return (
            f"its connector is {named}, for which Transformers has no class that we write: "
            f"expected MLP(depth=2); {INSTEAD}"
        )
    if connector.depth != 2:
        return (
            f"its connector is MLP(depth={connector.depth}) and {architecture} has two linear "
            f"layers: expected MLP(depth=2); {INSTEAD}"
        )
    return ""


def refuse_others(model: VisionLanguageModel) -> None:
    """Refuses what only the loaded parts tell.

    Raises:
        ExportError: If the tower, its preprocessing or the language model has no place in LLaVA.
    """
    vision = model.vision
    tower_of(vision)
    if vision.config.final_norm:
        raise ExportError(
            f"{vision.config.name} is read behind its final norm (final_norm = true), and "
            f"{ARCHITECTURE} reads what its blocks give: expected final_norm = false; {INSTEAD}"
        )
    height, width = vision.image_size
    if vision.config.resize == "pad" and height != width:
        raise ExportError(
            f"{vision.config.name} sees padded images of {height} x {width} pixels, and LLaVA's "
            f'image processor pads to squares: expected a square, or resize = "squash"; {INSTEAD}'
        )
    refuse_other_heads(model.language, ARCHITECTURE)


def config_of(model: VisionLanguageModel, added: WrittenTokens) -> Any:
    """The `LlavaConfig`."""
    from transformers import LlavaConfig

    tower, vision = tower_of(model.vision), model.vision.config
    config = LlavaConfig(
        vision_config={**tower.config, "dtype": dtype_name(model)},
        text_config=text_config(model, added),
        image_token_index=added.image_id,
        image_seq_length=model.vision.shape.tokens,
        projector_hidden_act="gelu",
        multimodal_projector_bias=has_bias(model),
        vision_feature_select_strategy=tower.selected(model.vision.shape.tokens),
        vision_feature_layer=vision.feature_layer,
        tie_word_embeddings=added.tied,
        dtype=dtype_name(model),
    )
    config.architectures = [ARCHITECTURE]
    return config


def processor_of(model: VisionLanguageModel, added: WrittenTokens, template: str) -> Any:
    """The `LlavaProcessor`: pixels, the places of an image in the text, the chat template."""
    from transformers import LlavaProcessor

    tower = tower_of(model.vision)
    return LlavaProcessor(
        image_processor=image_processor_of(model),
        tokenizer=added.tokenizer,
        patch_size=tower.config["patch_size"],
        vision_feature_select_strategy=tower.selected(model.vision.shape.tokens),
        num_additional_image_tokens=tower.class_tokens,
        image_token=added.image,
        chat_template=template,
    )


def image_processor_of(model: VisionLanguageModel) -> Any:
    """The encoder's own image processor, or one that fits a whole image into its size."""
    from transformers import LlavaImageProcessor

    vision = model.vision
    processor = tower_of(vision).processor
    if vision.config.resize == "own":
        return processor
    height, width = vision.image_size
    values = {**processor.to_dict(), **FITTED, "size": {"height": height, "width": width}}
    if vision.config.resize == "squash":
        return type(processor).from_dict(values)
    values.pop("image_processor_type", None)
    values |= {"do_pad": True, "do_normalize": True, "image_mean": [1.0] * 3}
    values["image_std"] = list(vision.normalisation[1] or ())
    return LlavaImageProcessor.from_dict(values)


def moved_pixels(model: VisionLanguageModel) -> Tensor:
    """What the model's pixels are more than the written image processor's, (3, 1, 1).

    LLaVA's image processor pads with the mean that it subtracts. So that it pads with white, that
    mean is white, and all pixels are lower by one colour. What the patch embedding, a linear map,
    makes of that colour is put into the tower.
    """
    if model.vision.config.resize != "pad":
        return torch.zeros(3, 1, 1)
    mean, std = (torch.tensor(v or [], dtype=torch.float64) for v in model.vision.normalisation)
    return ((1 - mean) / std).float()[:, None, None]


def tensors_of(
    model: VisionLanguageModel, added: WrittenTokens, *, merge: bool
) -> dict[str, Tensor]:
    """Every tensor by its name on the disk."""
    tower, projector = _tower_tensors(model), projector_tensors(model)
    tensors = {f"vision_tower.vision_model.{name}": t for name, t in tower.items()}
    tensors |= {f"multi_modal_projector.{name}": t for name, t in projector.items()}
    for name, tensor in language_tensors(model, added, merge=merge).items():
        inner = "" if name.startswith("lm_head.") else "model."
        tensors[f"language_model.{inner}{name}"] = tensor
    return tensors


def has_bias(model: VisionLanguageModel) -> bool:
    """Whether the connector's two layers have one."""
    return any(name.endswith(".bias") for name in projector_tensors(model))


def projector_tensors(model: VisionLanguageModel) -> dict[str, Tensor]:
    """The connector's, by their names in LLaVA's projector."""
    first, _, second = model.connector.layers  # type: ignore[misc]
    return {
        f"linear_{number}.{name}": tensor
        for number, layer in enumerate((first, second), start=1)
        for name, tensor in layer.state_dict().items()
    }


def _tower_tensors(model: VisionLanguageModel) -> dict[str, Tensor]:
    """The tower's, which see pixels moved by one colour as it sees its own; see `moved_pixels`.

    The one tensor that changes is written in fp32: a sum rounded to 16 bits would be another.
    """
    tensors = tower_of(model.vision).tensors
    if not (moved := moved_pixels(model)).any():
        return tensors
    patches = tensors["embeddings.patch_embedding.weight"].cpu()  # which knows float64 for sure
    seen = (patches.double() * moved).sum(dim=(1, 2, 3))
    name = "embeddings.patch_embedding.bias"
    if name in tensors:
        tensors[name] = (tensors[name].cpu().double() + seen).float()
        return tensors
    name = "embeddings.position_embedding.weight"
    places = tensors[name].cpu().double()
    places[1:] += seen  # the first is the class token's, which sees no pixels
    tensors[name] = places.float()
    return tensors


def notes_of(model: VisionLanguageModel) -> list[str]:
    """What whoever runs the export elsewhere should know."""
    layer, layers = (
        model.vision.config.feature_layer,
        tower_of(model.vision).config["num_hidden_layers"],
    )
    notes = []
    if layer in (-1, layers):
        notes.append(
            "the vision encoder's last layer is read (feature_layer = -1), which vLLM passes "
            "through post_layernorm and Transformers does not: run it in Transformers; a model "
            "trained with feature_layer = -2 runs alike in both"
        )
    if model.vision.config.resize == "pad":
        notes.append(
            "images are padded with white: the mean in preprocessor_config.json is white, and the "
            "vision encoder is written for pixels that are lower by one colour"
        )
    return notes
