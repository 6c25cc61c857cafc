"""Saving and loading dual encoders, and wrapping those of other libraries.

The folder is that of `checkpoint`, kind "clip": heads, temperature, bias and encoders that are not
locked as tensors; `config` has the parts' names, heads, pooling and which encoders are locked,
`parts` fingerprints of the locked ones.

A dual encoder of another library that was trained further keeps all of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.config.model import SHIPPED, VisionConfig
from isthmus.errors import CheckpointError, ConfigError, suggestion
from isthmus.machine import device_for, dtype_for
from isthmus.model.backbones.fingerprint import fingerprint, weight_files
from isthmus.model.backbones.text import TextConfig, load_text
from isthmus.model.backbones.vision import load_vision
from isthmus.model.checkpoint import (
    DESCRIPTION,
    FORMAT_VERSION,
    describe,
    locate,
    read_tensors,
    refuse_other_tensors,
    write_model,
)
from isthmus.model.clip.class_mixture import ClassMixtureConfig
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig, JoinedImageTower, JoinedTextTower
from isthmus.model.snapshots import fetched

FORMS = ("open_clip:ARCH/PRETRAINED", "hf:REPO", "a folder", *SHIPPED)


def load_clip(
    source: Any,
    *,
    tokenizer: Any = None,
    preprocess: Any = None,
    vision: Any = None,
    text: Any = None,
    pretrained: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> DualEncoder:
    """Loads a dual encoder by name or from a folder, or wraps one.

    Args:
        source: "tiny-clip" (shipped), "open_clip:ARCH/PRETRAINED", "hf:REPO" (Transformers CLIP,
            SigLIP, SigLIP 2), a folder that `save` or Transformers wrote, or a model
            of open_clip or Transformers.
        tokenizer: The tokenizer of a model handed in as an object.
        preprocess: Its preprocessing: for open_clip the evaluation transform, for Transformers
            the image processor; or any function from an image to pixels (3, H, W).
        vision: The vision encoder of a saved joint, where it was handed in as an object.
        text: The text encoder likewise.
        pretrained: Whether to fetch weights; without, they are random.
        device: "auto" (the best there is), "cpu", "cuda", "mps" or a `torch.device`. A model that
            is handed in stays where it is.
        dtype: Data type of the towers. "auto" is float32 everywhere, so that vectors and indexes
            of one machine fit those of another; temperature and bias are float32 in any case.

    Raises:
        ConfigError: If the name has an unknown form, an object lacks its tokenizer, or this
            machine has no such device.
        CheckpointError: If it cannot be loaded, or its locked parts are others.
        MissingExtraError: If open_clip is asked for and not installed.

    Example:
        >>> load_clip("open_clip:ViT-B-32/openai")  # doctest: +SKIP
    """
    if isinstance(source, DualEncoder):
        return source
    if isinstance(source, torch.nn.Module):
        if _is_transformers(source):
            from isthmus.model.clip.transformers_model import wrap_transformers

            return wrap_transformers(source, tokenizer, preprocess)
        from isthmus.model.clip.open_clip_model import wrap_open_clip

        return wrap_open_clip(source, tokenizer, preprocess)
    place = device_for(device)  # said before anything is read
    kind = dtype_for(None if dtype == "auto" else dtype, place)
    model = _named(str(fetched(source)), vision, text, pretrained).to(place)
    if kind != torch.float32:
        model.image.to(kind)
        model.text.to(kind)
    return model


def _named(name: str, vision: Any, text: Any, pretrained: bool) -> DualEncoder:
    """A dual encoder by name, on the CPU."""
    if name in SHIPPED:
        return _load_folder(locate(name), name, vision, text, pretrained)
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest:
        from isthmus.model.clip.open_clip_model import load_open_clip

        return load_open_clip(name, pretrained=pretrained)
    if scheme == "hf" and rest:
        from isthmus.model.clip.transformers_model import load_transformers

        return load_transformers(rest, name, pretrained=pretrained)
    path = Path(name)
    if path.is_dir():
        return _load_folder(path, name, vision, text, pretrained)
    raise ConfigError(f'unknown dual encoder "{name}": {suggestion(name, FORMS)}')


def _is_transformers(model: torch.nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _load_folder(folder: Path, name: str, vision: Any, text: Any, pretrained: bool) -> DualEncoder:
    path = folder / DESCRIPTION
    if not path.is_file():
        if _is_transformers_folder(folder):
            from isthmus.model.clip.transformers_model import load_transformers

            return load_transformers(str(folder), name, pretrained=pretrained)
        raise CheckpointError(f"{folder} holds no {DESCRIPTION}: it is not a saved model")
    told = describe(folder, "clip")
    files = {
        part: weight_files(_part_name(told["config"], part) if given is None else "")
        for part, given in (("vision", vision), ("text", text))
    }
    try:
        model = _build(told["config"], folder, vision, text)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    model.name = name
    for part, expected in told.get("parts", {}).items():
        got = files[part].fingerprint(_encoder(model, part))
        if got != expected:
            raise CheckpointError(
                f"{folder} was trained with a {part} encoder of fingerprint {expected}; this one "
                f"has {got}: other weights, or another model"
            )
    state, own = read_tensors(folder), trained_state(model)
    refuse_other_tensors(own, state, folder)
    model.load_state_dict(state, strict=False)
    return model.eval()


def _is_transformers_folder(folder: Path) -> bool:
    """Whether a folder is what `save_pretrained` of Transformers wrote."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _build(config: dict[str, Any], folder: Path, vision: Any, text: Any) -> DualEncoder:
    """A model of the saved form, before its weights are read."""
    if "name" in config:
        return load_clip(config["name"], device="cpu")
    for part, given in (("vision", vision), ("text", text)):
        if given is None and config[part]["name"].startswith("object:"):
            raise CheckpointError(
                f"{folder} was trained with a {part} encoder that was handed in as an object: "
                f"pass it as load(..., {part}=...)"
            )
    mixture = config.get("mixture")
    return DualEncoder.join(
        load_vision(VisionConfig(**config["vision"]) if vision is None else vision),
        load_text(TextConfig(**config["text"]) if text is None else text),
        width=config["width"],
        mixture=None if mixture is None else ClassMixtureConfig(**mixture),
        pooling=config["pooling"],
        image_head=HeadConfig(**config["image_head"]),
        text_head=HeadConfig(**config["text_head"]),
        loss=config["loss"],
        lock_image=config["lock_image"],
        lock_text=config["lock_text"],
    )


def _part_name(config: Any, part: str) -> str:
    """What a part was loaded as; empty where the configuration, not yet checked, does not say."""
    try:
        return str(config[part]["name"])
    except (KeyError, TypeError):
        return ""


def _encoder(model: DualEncoder, part: str) -> torch.nn.Module:
    tower = model.image if part == "vision" else model.text
    found: torch.nn.Module = tower.encoder.model  # type: ignore[union-attr, assignment]
    return found


def trained_state(model: DualEncoder) -> dict[str, Tensor]:
    """The tensors of a dual encoder that are saved: all but those of locked towers.

    Tensors that have two names, as in a model whose towers share it, are there once.
    """
    skipped = tuple(
        f"{place}.encoder."
        for place, tower in (("image", model.image), ("text", model.text))
        if isinstance(tower, (JoinedImageTower, JoinedTextTower)) and tower.locked
    )
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        # all empty tensors lie at the same place, and share nothing
        if not name.startswith(skipped) and (tensor.numel() == 0 or key not in seen):
            state[name] = tensor
            seen.add(key)
    return state


def save_clip(
    model: DualEncoder,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a dual encoder: heads, temperature and bias, and towers that are not locked.

    Args:
        model: The model.
        folder: Where to; made if missing.
        dtype: Precision of the file, for example `torch.float16`; None keeps the model's.
        extra: More entries for `isthmus.json`, such as how it was trained.

    Returns:
        The folder.

    Raises:
        OutputError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> folder = save_clip(model, tempfile.mkdtemp())
        >>> load_clip(folder).fingerprint() == model.fingerprint()
        True
    """
    return write_model(
        folder, {**description_of(model), **(extra or {})}, trained_state(model), dtype
    )


def description_of(model: DualEncoder) -> dict[str, Any]:
    """What `isthmus.json` says of a model: its configuration and what it was trained on.

    Raises:
        CheckpointError: If a saved copy could not be loaded again.
    """
    image, text = model.image, model.text
    head = {"format_version": FORMAT_VERSION, "kind": "clip"}
    if not isinstance(image, JoinedImageTower) or not isinstance(text, JoinedTextTower):
        if model.name.partition(":")[0] not in ("open_clip", "hf"):
            raise CheckpointError(
                f'"{model.name}" was wrapped as an object, so a saved copy could not be loaded '
                'by name: load it by name ("hf:FOLDER" of its save_pretrained is one) first'
            )
        return {**head, "config": {"name": model.name}, "parts": {}}
    locked = {"vision": image.locked, "text": text.locked}
    return {
        **head,
        "config": {
            "vision": asdict(image.encoder.config),
            "text": asdict(text.encoder.config),
            "width": text.head.linear.out_features,
            "pooling": image.pooling,
            "image_head": asdict(image.head.config),
            "text_head": asdict(text.head.config),
            "mixture": None if image.mixture is None else asdict(image.mixture.config),
            "loss": model.loss,
            "lock_image": image.locked,
            "lock_text": text.locked,
        },
        "parts": {
            p: fingerprint(_encoder(model, p)) for p, is_locked in locked.items() if is_locked
        },
    }
