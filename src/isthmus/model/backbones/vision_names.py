"""Vision models behind names: of timm, Transformers and open_clip, and assets."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from isthmus.config.model import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, loading, suggestion
from isthmus.model.backbones.backbone import Backbone
from isthmus.model.backbones.libraries import (
    from_open_clip,
    from_timm,
    from_transformers,
    open_clip_library,
)
from isthmus.model.backbones.native import from_native, is_native
from isthmus.model.backbones.refusals import refuse_code, refuse_whole_name, whole_class
from isthmus.model.backbones.released import plan_of, read
from isthmus.model.backbones.tower_alone import read_tower, tower_type

PREFIXES = (
    "timm:NAME",
    "hf:REPO",
    "open_clip:ARCH/PRETRAINED",
    "asset:NAME",
    "tiny-vit",
    "tiny-cnn",
)


def fetch(config: VisionConfig, pretrained: bool, processor: Any) -> Backbone:
    """The model behind a name."""
    if config.name == "tiny-vit":
        from isthmus.model.backbones.tiny import tiny_vit_model

        return from_timm(tiny_vit_model(), config)
    if config.name == "tiny-cnn":
        from isthmus.model.backbones.tiny import tiny_cnn_model

        return from_timm(tiny_cnn_model(), config)
    scheme, _, rest = config.name.partition(":")
    if scheme not in ("timm", "asset", "hf", "open_clip") or not rest:
        raise ConfigError(f'unknown vision encoder "{config.name}": {_meant(scheme)}')
    refuse_code(config.name)
    if scheme == "hf" and whole_class(rest) and tower_type(config.name):
        tower, own = read_tower(config.name, pretrained=pretrained)
        make = from_native if is_native(tower) else from_transformers
        return make(tower, config, processor or own)
    refuse_whole_name(config.name)
    plan = plan_of(config.name)
    if plan is not None:
        whole = read(config.name, pretrained=pretrained)
        if is_native(whole.tower):
            return from_native(whole.tower, config, processor or whole.image_processor)
        backbone = from_transformers(whole.tower, config, processor or whole.image_processor)
        return replace(backbone, prefix=plan.prefix)
    with loading(config.name, "a folder or a model"):
        if scheme == "timm":
            return from_timm(_timm_model(rest, pretrained), config)
        if scheme == "asset":
            return from_timm(_asset_model(rest), config)
        if scheme == "hf":
            model, _, own = _transformers_model(rest, pretrained, config, processor)
            make = from_native if is_native(model) else from_transformers
            return make(model, config, own)
        return from_open_clip(*open_clip_model(rest, pretrained, config))


def own_features(name: str) -> dict[str, Any]:
    """Options that a name stands for: the features that a released model reads of its tower.

    Raises:
        CheckpointError: If the configuration of a released model cannot be read.
        ConfigError: If it reads features that no vision encoder here gives.

    Example:
        >>> own_features("tiny-vit")
        {}
    """
    plan = plan_of(name)
    if plan is None:
        return {}
    return {
        "feature_layer": plan.feature_layer,
        "keep_cls": plan.keep_cls,
        "final_norm": plan.final_norm,
        "deepstack": plan.deepstack,
    }


def _meant(name: str) -> str:
    """The form of a name that was probably meant, and all forms."""
    forms = {form.partition(":")[0]: form for form in PREFIXES}
    close = difflib.get_close_matches(name, forms, n=1)
    return suggestion(forms[close[0]] if close else name, PREFIXES)


def _near(name: str, known: Iterable[str]) -> str:
    """For names of which there are too many to list."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(close)}?" if close else "check the spelling"


def _timm_model(name: str, pretrained: bool) -> Any:
    import timm

    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        hint = _near(name, timm.list_models())
        raise CheckpointError(f'cannot load "timm:{name}": timm has no such model; {hint}')
    return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _asset_model(name: str) -> Any:
    import timm

    from isthmus.assets import registry as assets

    folder: Path = assets.fetch_asset(name)
    settings = folder / "config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    if "architecture" not in told:
        raise ConfigError(
            f'the asset "{name}" is not a vision encoder; try asset:efficientnet-lite2'
        )
    with torch.device("meta"):  # no time for random weights that the file's take the place of
        model = timm.create_model(told["architecture"], pretrained_cfg=told["pretrained_cfg"])
    model.to_empty(device="cpu")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def _transformers_model(
    name: str, pretrained: bool, config: VisionConfig, processor: Any
) -> tuple[Any, VisionConfig, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    if pretrained:
        model = AutoModel.from_pretrained(name, trust_remote_code=False)
    else:
        model = AutoModel.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
    if processor is None:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    return model, config, processor


def open_clip_model(
    name: str, pretrained: bool, config: VisionConfig
) -> tuple[Any, VisionConfig, Any]:
    """open_clip's model of a name, the configuration, and its preprocessing.

    Raises:
        CheckpointError: If there is no such model, or no such weights of it.
    """
    library = open_clip_library()
    options: dict[str, Any] = {}
    if ":" in name:  # open_clip's own forms, hf-hub:REPO and local-dir:FOLDER
        arch, options["load_weights"] = name, pretrained
    else:
        arch, _, tag = name.partition("/")
        if arch not in library.list_models():
            hint = _near(arch, library.list_models())
            raise CheckpointError(
                f'cannot load "{config.name}": open_clip has no model {arch}; {hint}'
            )
        tags = library.list_pretrained_tags_by_model(arch)
        if pretrained and tag not in tags and not Path(tag).is_file():
            raise CheckpointError(
                f'cannot load "{config.name}": open_clip has no weights "{tag}" of {arch}, but: '
                f"{', '.join(tags) or 'none'}"
            )
        trained = library.get_pretrained_cfg(arch, tag) or {}
        # open_clip only warns of another activation than the weights were trained with
        options["force_quick_gelu"] = trained.get("quick_gelu", False)
        if pretrained:
            options["pretrained"] = tag
    model, _, transform = library.create_model_and_transforms(arch, **options)
    return model, config, transform
