"""`LlavaForConditionalGeneration`: a CLIP or SigLIP tower, two linear layers, a decoder.

Keys stand on the disk as in released LLaVA models (`vision_tower.vision_model...`,
`language_model.model...`), which every version of Transformers and other runtimes read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

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
from isthmus.exporting.tokens import AddedTokens
from isthmus.model.connectors.mlp import MLP
from isthmus.model.vlm import VisionLanguageModel

ARCHITECTURE = "LlavaForConditionalGeneration"
TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""What is read off each tower: all but its first token, or all."""
BICUBIC = 3


def why_not(config: ModelConfig) -> str:
    """Why a model of a configuration has no form as LLaVA; empty if it has one."""
    connector, vision = config.connector, config.vision
    if not isinstance(connector, MLP):
        named = "a module of your own" if connector is None else type(connector).__name__
        return (
            f"its connector is {named}, for which Transformers has no class that we write: "
            f"expected MLP(depth=2); {INSTEAD}"
        )
    if connector.depth != 2:
        return (
            f"its connector is MLP(depth={connector.depth}) and {ARCHITECTURE} has two linear "
            f"layers: expected MLP(depth=2); {INSTEAD}"
        )
    if vision.name.partition(":")[0] not in ("hf", "object"):
        return (
            f"its vision encoder is {vision.name} and {ARCHITECTURE} holds encoders of "
            "Transformers alone: expected the same tower from there, as "
            f'"hf:openai/clip-vit-large-patch14-336" or a SigLIP; {INSTEAD}'
        )
    if vision.resize == "pad":
        return (
            'its vision encoder sees images padded with white (resize = "pad"), and no image '
            f'processor of Transformers does that: expected resize = "own" or "squash"; {INSTEAD}'
        )
    return ""


def refuse_others(model: VisionLanguageModel) -> None:
    """Refuses what only the loaded parts tell.

    Raises:
        ExportError: If the tower, its preprocessing or the language model has no place in LLaVA.
    """
    vision = model.vision
    kind = getattr(vision.model.config, "model_type", "")
    if kind not in TOWERS:
        raise ExportError(
            f"{vision.config.name} is a {type(vision.model).__name__}, which {ARCHITECTURE} cannot "
            f"hold: expected a CLIP or SigLIP of a fixed resolution; {INSTEAD}"
        )
    if vision.processor is None:
        raise ExportError(
            f"{vision.config.name} came without an image processor of Transformers: pass one as "
            "load_vision(..., preprocess=PROCESSOR)"
        )
    refuse_other_heads(model.language, ARCHITECTURE)


def config_of(model: VisionLanguageModel, added: AddedTokens) -> Any:
    """The `LlavaConfig`."""
    from transformers import LlavaConfig

    tower = _tower(model).config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        tower.pop(name, None)
    if tower["model_type"] == "siglip_vision_model":
        tower["vision_use_head"] = hasattr(_tower(model), "head")
    config = LlavaConfig(
        vision_config={**tower, "dtype": dtype_name(model)},
        text_config=text_config(model, added),
        image_token_index=added.image_id,
        image_seq_length=model.vision.shape.tokens,
        projector_hidden_act="gelu",
        vision_feature_select_strategy=_strategy(model),
        vision_feature_layer=model.vision.config.feature_layer,
        tie_word_embeddings=False,
        dtype=dtype_name(model),
    )
    config.architectures = [ARCHITECTURE]
    return config


def processor_of(model: VisionLanguageModel, added: AddedTokens, template: str) -> Any:
    """The `LlavaProcessor`: pixels, the places of an image in the text, the chat template."""
    from transformers import LlavaProcessor

    has_class = _tower(model).config.model_type == "clip_vision_model"
    return LlavaProcessor(
        image_processor=image_processor_of(model),
        tokenizer=added.tokenizer,
        patch_size=_tower(model).config.patch_size,
        vision_feature_select_strategy=_strategy(model),
        num_additional_image_tokens=int(has_class),
        chat_template=template,
    )


def image_processor_of(model: VisionLanguageModel) -> Any:
    """The encoder's own image processor, or one that squeezes an image into its size."""
    vision = model.vision
    processor = copy.deepcopy(vision.processor)
    if vision.config.resize == "own":
        return processor
    height, width = vision.image_size
    values = {
        **processor.to_dict(),
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    return type(processor).from_dict(values)


def tensors_of(model: VisionLanguageModel, added: AddedTokens) -> dict[str, Tensor]:
    """Every tensor by its name on the disk."""
    return dict(_tensors(model, added))


def _tensors(model: VisionLanguageModel, added: AddedTokens) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.vision.model.state_dict().items():
        yield f"vision_tower.vision_model.{name}", tensor
    first, _, second = model.connector.layers  # type: ignore[misc]
    for number, layer in enumerate((first, second), start=1):
        yield f"multi_modal_projector.linear_{number}.weight", layer.weight
        yield f"multi_modal_projector.linear_{number}.bias", layer.bias
    for name, tensor in language_tensors(model, added).items():
        inner = "" if name.startswith("lm_head.") else "model."
        yield f"language_model.{inner}{name}", tensor


def notes_of(model: VisionLanguageModel) -> list[str]:
    """What whoever runs the export elsewhere should know."""
    layer, layers = model.vision.config.feature_layer, _tower(model).config.num_hidden_layers
    notes = []
    if layer in (-1, layers):
        notes.append(
            "the vision encoder's last layer is read (feature_layer = -1), which vLLM passes "
            "through post_layernorm and Transformers does not: run it in Transformers; a model "
            "trained with feature_layer = -2 runs alike in both"
        )
    return notes


def _tower(model: VisionLanguageModel) -> Any:
    """The vision encoder, of Transformers."""
    return model.vision.model


def _strategy(model: VisionLanguageModel) -> str:
    """Which of the tower's tokens are seen."""
    return "full" if model.vision.config.keep_cls else TOWERS[_tower(model).config.model_type]
