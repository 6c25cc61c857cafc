"""The vision tower of a released vision-language model, read without its language model.

A tower may stand in a model of hundreds of gigabytes. The whole model is built on the meta device,
which tells where the tower is and what its tensors are called; then only the files that hold these
are fetched, and of them only these tensors are read. Names in files differ from those of modules:
older ones have a prefix of their own, some are renamed by Transformers as it reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from isthmus.errors import CheckpointError, loading
from isthmus.model.backbones.placement import held_tensors, quiet_dispatch
from isthmus.model.backbones.released import refuse_missing, told_by

TOWERS = (
    *("clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model"),
    *("internvl_vision", "idefics3_vision", "smolvlm_vision", "llama4_vision_model"),
    *("ovis2_vision", "pixtral", "glm4v_vision", "glm4v_moe_vision", "kimi_k25_vision"),
    *("qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision"),
    *("qwen3_5_vision", "qwen3_5_moe_vision"),
)
"""Towers that are known to give what their class gives, by their model types."""
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"


def tower_type(name: str) -> str | None:
    """The type of the tower of a vision-language model "hf:REPO"; None if it has none known here.

    Example:
        >>> tower_type("tiny-vit") is None
        True
    """
    scheme, _, place = name.partition(":")
    vision = told_by(place).get("vision_config") if scheme == "hf" and place else None
    kind = vision.get("model_type") if isinstance(vision, Mapping) else None
    if isinstance(vision, Mapping) and kind is None:  # some files leave it to the class
        from transformers import AutoConfig

        with loading(name, "a folder"):
            whole = AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind = getattr(getattr(whole, "vision_config", None), "model_type", None)
    return str(kind) if kind in TOWERS else None


def read_tower(name: str, *, pretrained: bool = True) -> tuple[nn.Module, Any]:
    """The vision tower of a vision-language model and its image processor, in float32.

    Args:
        name: "hf:REPO-OR-FOLDER", whose `tower_type` is known.
        pretrained: Whether to read weights; without, they are random.

    Raises:
        CheckpointError: If it cannot be read, or its files lack some of the tower's tensors.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

    place = name.partition(":")[2]
    with loading(name, "a folder with its weights and its processor"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        with torch.device("meta"):
            whole = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        path, shape = _tower(whole, config.vision_config)
        tower = type(shape)(shape.config)  # with the buffers that it computes and no file has
        if pretrained:
            tower.load_state_dict(_loaded(name, place, whole, config, path))
        processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    if hasattr(processor, "max_patches") and tower.config.model_type == "llama4_vision_model":
        processor.max_patches = 1  # the whole image in one tile, and no crops
    return tower.eval(), processor


def _tower(whole: nn.Module, config: Any) -> tuple[str, Any]:
    """Where the tower of a model is, and the tower."""
    for path, module in whole.named_modules():
        own = getattr(module, "config", None)
        if path and getattr(own, "model_type", None) == config.model_type:
            return path, module
    raise CheckpointError(f"{type(whole).__name__} has no tower of the type {config.model_type}")


def _loaded(name: str, place: str, whole: Any, config: Any, path: str) -> dict[str, Tensor]:
    """The tower's tensors, by Transformers' own loading, which renames, splits and permutes them.

    All else is put on the meta device, where it takes no memory.
    """
    part = path.rpartition(".")[2]
    by_file: dict[str, list[str]] = {}
    for key, file in _files(place).items():
        if part in key.split("."):
            by_file.setdefault(file, []).append(key)
    state: dict[str, Tensor] = {}
    for file, keys in by_file.items():
        with safe_open(_fetched(place, file), framework="pt") as opened:
            state |= {key: opened.get_tensor(key) for key in keys}
    names = [n for n, _ in whole.named_parameters(remove_duplicate=False)]
    names += [n for n, _ in whole.named_buffers()]
    beside = {n.rpartition(".")[0] or n for n in names if not n.startswith(f"{path}.")}
    device_map = {path: "cpu", **{n: "meta" for n in beside if not path.startswith(f"{n}.")}}
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list all that is not read
    try:
        with quiet_dispatch():
            model, report = type(whole).from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map=device_map,
                dtype=torch.float32,
                output_loading_info=True,
            )
    finally:
        transformers_logging.set_verbosity(level)
    refuse_missing(name, sorted(k for k in report["missing_keys"] if k.startswith(f"{path}.")))
    return {key: held() for key, held in held_tensors(model.get_submodule(path)).items()}


def _files(place: str) -> dict[str, str]:
    """The file of each tensor of a repository."""
    from transformers.utils import cached_file

    index = cached_file(place, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        with open(index, encoding="utf-8") as opened:
            told: dict[str, str] = json.load(opened)["weight_map"]
        return told
    with safe_open(_fetched(place, ONE_FILE), framework="pt") as opened:
        return dict.fromkeys(opened.keys(), ONE_FILE)


def _fetched(place: str, file: str) -> str:
    from transformers.utils import cached_file

    return str(cached_file(place, file))
