"""The other half, "mmproj": a vision tower and the two layers behind it.

llama.cpp runs the blocks that are in the file, up to the feature layer, and the final norm if it is
there. So the blocks behind the feature layer are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isthmus.config.model import ModelConfig
from isthmus.errors import ExportError
from isthmus.exporting.language import INSTEAD
from isthmus.exporting.llava import projector_tensors, why_no_projector
from isthmus.exporting.towers import tower_of
from isthmus.model.vlm import VisionLanguageModel

ARCHITECTURE = "llama.cpp"
ACTIVATIONS = {"quick_gelu": None, "gelu_pytorch_tanh": True, "gelu": True}
"""What `clip.use_gelu` says for an activation of Transformers; nothing is the quick one."""
PLACES = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "pre_layrnorm": "v.pre_ln",
    "post_layernorm": "v.post_ln",
}
IN_BLOCKS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
"""llama.cpp's names of the tower's parts, by Transformers'."""


def why_not(config: ModelConfig) -> str:
    """Why llama.cpp cannot show images to a model of a configuration; empty if it can."""
    vision = config.vision
    if why := why_no_projector(config, "llama.cpp"):
        return why
    if vision.name.partition(":")[0] not in ("hf", "open_clip", "object"):
        return (
            f"its vision encoder is {vision.name} and llama.cpp has CLIP and SigLIP: expected one "
            f'("hf:...", "open_clip:..."); {INSTEAD}'
        )
    return ""


def refuse_others(model: VisionLanguageModel) -> None:
    """Refuses what only the loaded parts tell.

    Raises:
        ExportError: If the tower is another, or llama.cpp reads other tokens of it.
    """
    vision, tower = model.vision, tower_of(model.vision)
    name, (height, width) = vision.config.name, vision.image_size
    patches = (tower.config["image_size"] // tower.config["patch_size"]) ** 2
    wrong = [
        (height != width, f"images of {height} x {width} pixels", "square ones"),
        (
            vision.shape.tokens != patches,
            f"{vision.shape.tokens} tokens of {patches} patches (keep_cls, or a first patch that "
            "is dropped)",
            "the patches alone",
        ),
        (
            tower.config.get("hidden_act", "quick_gelu") not in ACTIVATIONS,
            f"the activation {tower.config.get('hidden_act')!r}",
            "a GELU",
        ),
    ]
    for is_wrong, got, expected in wrong:
        if is_wrong:
            raise ExportError(
                f"{name} has {got}, which llama.cpp does not read: expected {expected}; {INSTEAD}"
            )


def blocks_of(model: VisionLanguageModel) -> int:
    """How many blocks of the tower are run."""
    layer, layers = (
        model.vision.config.feature_layer,
        int(tower_of(model.vision).config["num_hidden_layers"]),
    )
    return layer if layer >= 0 else layers + 1 + layer


def write_projector(writer: Any, model: VisionLanguageModel) -> None:
    """Writes the keys of a vision tower and the connector.

    Args:
        writer: A `gguf.GGUFWriter` for "clip".
        model: The model.
    """
    tower, blocks = tower_of(model.vision).config, blocks_of(model)
    mean, std = model.vision.normalisation
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(model.vision.image_size[0])
    writer.add_vision_patch_size(tower["patch_size"])
    writer.add_vision_embedding_length(tower["hidden_size"])
    writer.add_vision_feed_forward_length(tower["intermediate_size"])
    writer.add_vision_block_count(blocks)
    writer.add_vision_projection_dim(model.language.width)
    writer.add_vision_head_count(tower["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(tower["layer_norm_eps"])
    writer.add_vision_image_mean(list(mean or ()))
    writer.add_vision_image_std(list(std or ()))
    writer.add_array("clip.vision.feature_layer", [blocks])
    if ACTIVATIONS[tower.get("hidden_act", "quick_gelu")]:
        writer.add_vision_use_gelu(True)


def tensors_of(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Every tensor by its name in llama.cpp."""
    found, blocks = {}, blocks_of(model)
    for own, tensor in tower_of(model.vision).tensors.items():
        part, _, kind = own.rpartition(".")
        if own == "embeddings.class_embedding":
            found[PLACES[own]] = tensor
        elif part == "post_layernorm" and not model.vision.config.final_norm:
            continue  # llama.cpp would apply it
        elif part in PLACES:
            found[f"{PLACES[part]}.{kind}"] = tensor
        elif part.startswith("encoder.layers."):
            number, _, inner = part.removeprefix("encoder.layers.").partition(".")
            if int(number) < blocks:
                found[f"v.blk.{number}.{IN_BLOCKS[inner]}.{kind}"] = tensor
        # what else there is, such as SigLIP's pooling head, is behind the features
    projector = projector_tensors(model)
    for layer, place in ((1, 0), (2, 2)):
        weight = projector[f"linear_{layer}.weight"]
        bias = projector.get(f"linear_{layer}.bias", torch.zeros_like(weight[:, 0]))
        found |= {f"mm.{place}.weight": weight, f"mm.{place}.bias": bias}  # it adds one always
    return found


def notes_of(model: VisionLanguageModel) -> list[str]:
    """What whoever runs it should know."""
    tower = tower_of(model.vision)
    notes = [
        "llama.cpp fits a whole image into the square by a resampler of its own, with a border of "
        "grey-brown (122, 116, 104): square images look alike, others differ from what the model "
        f'was trained on (resize = "{model.vision.config.resize}")'
    ]
    if tower.class_tokens:
        notes.append(
            "llama.cpp of 2025 and 2026 puts CLIP's class token behind the patches, which shifts "
            "its places by one and hands the class token over for the first patch: answers differ "
            "from the model's, as those of every LLaVA with a CLIP do there; SigLIP is exact"
        )
    if tower.config.get("hidden_act") == "gelu":
        notes.append("the vision encoder's GELU is exact, and llama.cpp's is approximated by tanh")
    return notes
