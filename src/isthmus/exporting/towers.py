"""Vision towers as `CLIPVisionModel` and `SiglipVisionModel` of Transformers.

Those of Transformers are written as they are. A vision transformer of open_clip is CLIP's under
other names: what its attention holds in one matrix is cut into three.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isthmus.errors import ExportError
from isthmus.exporting.language import INSTEAD
from isthmus.model.backbones.vision import VisionEncoder

KINDS = ("clip_vision_model", "siglip_vision_model")
RESAMPLE = {"bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class Tower:
    """A vision tower as Transformers has it.

    Attributes:
        config: Its configuration, with `model_type`.
        tensors: Its tensors by name.
        processor: Its image processor, a copy.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    processor: Any

    @property
    def class_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return int(self.config["model_type"] == "clip_vision_model")

    def selected(self, tokens: int) -> str:
        """Which of its tokens are seen, in LLaVA's words: all, or all but the first.

        Args:
            tokens: How many are seen.
        """
        patches = (self.config["image_size"] // self.config["patch_size"]) ** 2
        return "full" if tokens == patches + self.class_tokens else "default"


def tower_of(vision: VisionEncoder) -> Tower:
    """A vision encoder's tower.

    Raises:
        ExportError: If it is of another kind, or its preprocessing is none of Transformers'.
    """
    model: Any = vision.model
    if hasattr(model, "resblocks") or hasattr(getattr(model, "transformer", None), "resblocks"):
        return _of_open_clip(vision)
    config = getattr(model, "config", None)
    if getattr(config, "model_type", "") not in KINDS:
        raise _no_place(vision)
    if vision.processor is None:
        raise ExportError(
            f"{vision.config.name} came without an image processor of Transformers: pass one as "
            "load_vision(..., preprocess=PROCESSOR)"
        )
    values: dict[str, Any] = config.to_dict()  # type: ignore[union-attr]
    for name in ("_name_or_path", "transformers_version"):
        values.pop(name, None)
    if values["model_type"] == "siglip_vision_model":
        values["vision_use_head"] = hasattr(model, "head")
    return Tower(values, dict(model.state_dict()), copy.deepcopy(vision.processor))


def _of_open_clip(vision: VisionEncoder) -> Tower:
    """A plain vision transformer of open_clip.

    Raises:
        ExportError: If it has parts that CLIP's has not.
    """
    from transformers import CLIPImageProcessor

    visual: Any = vision.model
    blocks = visual.transformer.resblocks
    first, state = blocks[0], visual.state_dict()
    tensors, read = _renamed(state, len(blocks))
    others = set(state) - read - {"proj"}
    told = getattr(visual, "preprocess_cfg", {})
    activation = type(first.mlp.gelu).__name__
    if others or activation not in ("GELU", "QuickGELU") or told.get("resize_mode") == "longest":
        raise _no_place(vision)
    height, width = vision.image_size
    mean, std = (list(values or ()) for values in vision.normalisation)
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": state["conv1.weight"].shape[0],
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "image_size": height,
        "patch_size": state["conv1.weight"].shape[-1],
        "hidden_act": "quick_gelu" if activation == "QuickGELU" else "gelu",
        "layer_norm_eps": visual.ln_pre.eps,
    }
    whole = {"height": height, "width": width}
    squashed = told.get("resize_mode") == "squash" or height != width
    processor = CLIPImageProcessor(
        size=whole if squashed else {"shortest_edge": height},
        crop_size=whole,
        resample=RESAMPLE[told.get("interpolation", "bicubic")],
        image_mean=mean,
        image_std=std,
    )
    return Tower(config, tensors, processor)


def _renamed(state: dict[str, Tensor], layers: int) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors by CLIP's names in Transformers, and the names in open_clip that were read."""
    names = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
    }
    for norm, own in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        names |= {f"{norm}.{kind}": f"{own}.{kind}" for kind in ("weight", "bias")}
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(layers):
        theirs, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part, own in inner.items():
            for kind in ("weight", "bias"):
                names[f"{theirs}.{part}.{kind}"] = f"{ours}.{own}.{kind}"
    found = {theirs: state[ours] for theirs, ours in names.items() if ours in state}
    read = set(names.values())
    for layer in range(layers):
        for kind in ("weight", "bias"):
            joint = f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
            read.add(joint)
            for part, tensor in zip("qkv", state[joint].chunk(3), strict=True):
                found[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = tensor
    return found, read


def _no_place(vision: VisionEncoder) -> ExportError:
    return ExportError(
        f"{vision.config.name} is a {type(vision.model).__name__}, which "
        "LlavaForConditionalGeneration cannot hold: expected a CLIP or SigLIP of a fixed "
        f"resolution; {INSTEAD}"
    )
