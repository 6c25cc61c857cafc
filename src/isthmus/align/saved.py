"""Saving dual encoders: what was trained as safetensors, the rest by name.

A folder holds `model.safetensors` and `config.json`:

    format        "isthmus-dual-encoder", version 1
    config        the parts' names, heads, pooling, which towers are locked
    parts         fingerprints of the locked towers that the heads were trained on

A dual encoder of another library that was trained further keeps all of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isthmus.align.class_mixture import ClassMixtureConfig
from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.joined import HeadConfig, JoinedImageTower, JoinedTextTower
from isthmus.backbones.fingerprint import fingerprint
from isthmus.backbones.text import TextConfig, load_text
from isthmus.backbones.vision import load_vision
from isthmus.config import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, suggestion
from isthmus.files import write_atomically, write_json

FORMAT = "isthmus-dual-encoder"
VERSION = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
SHIPPED = {"tiny": "tiny-clip"}
"""Dual encoders that come with the package: name to folder in `weights`."""
FORMS = ("open_clip:ARCH/PRETRAINED", "hf:REPO", "a folder", *SHIPPED)


def load_dual_encoder(
    source: Any,
    *,
    tokenizer: Any = None,
    preprocess: Any = None,
    vision: Any = None,
    text: Any = None,
    pretrained: bool = True,
) -> DualEncoder:
    """Loads a dual encoder by name or from a folder, or wraps one.

    Args:
        source: "tiny" (shipped), "open_clip:ARCH/PRETRAINED", "hf:REPO" (Transformers CLIP,
            SigLIP, SigLIP 2), a folder that `save_dual_encoder` or Transformers wrote, or a model
            of open_clip or Transformers.
        tokenizer: The tokenizer of a model handed in as an object.
        preprocess: Its preprocessing: for open_clip the evaluation transform, for Transformers
            the image processor; or any function from a picture to pixels (3, H, W).
        vision: The vision encoder of a saved joint, where it was handed in as an object.
        text: The text encoder likewise.
        pretrained: Whether to fetch weights; without, they are random.

    Raises:
        ConfigError: If the name has an unknown form, or an object lacks its tokenizer.
        CheckpointError: If it cannot be loaded, or its locked parts are others.
        MissingExtraError: If open_clip is asked for and not installed.

    Example:
        >>> load_dual_encoder("open_clip:ViT-B-32/openai")  # doctest: +SKIP
    """
    if isinstance(source, DualEncoder):
        return source
    if isinstance(source, torch.nn.Module):
        if _is_transformers(source):
            from isthmus.align.transformers_model import wrap_transformers

            return wrap_transformers(source, tokenizer, preprocess)
        from isthmus.align.open_clip_model import wrap_open_clip

        return wrap_open_clip(source, tokenizer, preprocess)
    name = str(source)
    if name in SHIPPED:
        folder = Path(str(resources.files("isthmus"))) / "weights" / SHIPPED[name]
        if not folder.is_dir():
            raise ConfigError(
                f'this version ships no dual encoder "{name}" yet: name one, such as '
                "open_clip:ViT-B-32/laion2b_s34b_b79k or hf:google/siglip-base-patch16-224"
            )
        return _load_folder(folder, name, vision, text, pretrained)
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest:
        from isthmus.align.open_clip_model import load_open_clip

        return load_open_clip(name, pretrained=pretrained)
    if scheme == "hf" and rest:
        from isthmus.align.transformers_model import load_transformers

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
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {DESCRIPTION}: it is no dual encoder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(told, dict) or "model_type" in told:
        from isthmus.align.transformers_model import load_transformers

        return load_transformers(str(folder), name, pretrained=pretrained)
    if told.get("format") != FORMAT:
        raise CheckpointError(f'{path} says no format "{FORMAT}": it is no dual encoder of ours')
    if told.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} has version {told.get('version')}, this Isthmus reads {VERSION}: "
            'pip install --upgrade "isthmus"'
        )
    try:
        model = _build(told["config"], folder, vision, text)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    model.name = name
    for part, expected in told.get("parts", {}).items():
        got = fingerprint(_encoder(model, part))
        if got != expected:
            raise CheckpointError(
                f"{folder} was trained with a {part} encoder of fingerprint {expected}; this one "
                f"has {got}: other weights, or another model"
            )
    _load_weights(model, folder / WEIGHTS)
    return model.eval()


def _build(config: dict[str, Any], folder: Path, vision: Any, text: Any) -> DualEncoder:
    """A model of the saved form, before its weights are read."""
    if "name" in config:
        return load_dual_encoder(config["name"])
    for part, given in (("vision", vision), ("text", text)):
        if given is None and config[part]["name"].startswith("object:"):
            raise CheckpointError(
                f"{folder} was trained with a {part} encoder that was handed in as an object: "
                f"pass it as load_dual_encoder(..., {part}=...)"
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


def save_dual_encoder(
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
        extra: More entries for `config.json`, such as how it was trained.

    Returns:
        The folder.

    Raises:
        OutputError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> folder = save_dual_encoder(model, tempfile.mkdtemp())
        >>> load_dual_encoder(folder).fingerprint() == model.fingerprint()
        True
    """
    target = Path(folder)
    description = {"format": FORMAT, "version": VERSION, **description_of(model), **(extra or {})}
    tensors = {
        name: (t.to(dtype) if dtype is not None and t.is_floating_point() else t).contiguous()
        for name, t in trained_state(model).items()
    }
    write_atomically(target / WEIGHTS, lambda p: save_file(tensors, p))
    write_json(target / DESCRIPTION, description)
    return target


def description_of(model: DualEncoder) -> dict[str, Any]:
    """What `config.json` says of a model: its configuration and what it was trained on.

    Raises:
        CheckpointError: If a saved copy could not be loaded again.
    """
    image, text = model.image, model.text
    if not isinstance(image, JoinedImageTower) or not isinstance(text, JoinedTextTower):
        if model.name.partition(":")[0] not in ("open_clip", "hf"):
            raise CheckpointError(
                f'"{model.name}" was wrapped as an object, so a saved copy could not be loaded '
                'by name: load it by name ("hf:FOLDER" of its save_pretrained is one) first'
            )
        return {"config": {"name": model.name}, "parts": {}}
    locked = {"vision": image.locked, "text": text.locked}
    return {
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


def _load_weights(model: DualEncoder, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    own = trained_state(model)
    differences = [f"{n} is missing" for n in sorted(own.keys() - state.keys())]
    differences += [f"{n} is unexpected" for n in sorted(state.keys() - own.keys())]
    differences += [
        f"{n} is {tuple(state[n].shape)}, expected {tuple(own[n].shape)}"
        for n in sorted(own.keys() & state.keys())
        if own[n].shape != state[n].shape
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(differences[:3])}{more}")
    model.load_state_dict(state, strict=False)
