"""`export`: a model written as a folder that another library loads with its own classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from isthmus.config.file import model_from_mapping
from isthmus.errors import ConfigError, ExportError, suggestion
from isthmus.exporting.dual import export_dual
from isthmus.exporting.exported import Exported
from isthmus.exporting.folder import free_place
from isthmus.exporting.form import Target
from isthmus.exporting.llama_cpp import projector
from isthmus.exporting.llama_cpp.sizes import size_named
from isthmus.exporting.llama_cpp.write import write_gguf
from isthmus.exporting.lora import WAYS
from isthmus.exporting.vlm import export_vlm, language_alone, refuse_unknown
from isthmus.model.backbones.int8_layers import exactly
from isthmus.model.backbones.refusals import refuse_whole_name
from isthmus.model.backbones.released import family_of
from isthmus.model.checkpoint import describe, is_transformers_folder, load_vlm, locate
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.join import reader_of
from isthmus.model.saving import kind_of
from isthmus.model.snapshots import fetched
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole

TARGETS = ("transformers", "gguf")


def export(
    model: VisionLanguageModel | DualEncoder | str | Path,
    folder: str | Path,
    *,
    to: Literal["transformers", "gguf"] = "transformers",
    lora: Literal["merge", "peft"] = "merge",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> Exported:
    """Writes a model as a folder that another library loads with its own classes.

    A CLIP or SigLIP, `MLP(depth=2)` and a language model, joined by `Inline()`,
    become a `LlavaForConditionalGeneration` with its processor, chat template and model card; with
    a convolutional network of timm, a `FastVlmForConditionalGeneration`. What was written is
    loaded again and compared before it gets its name.

    A dual encoder that came from Transformers goes back to it, with what it was trained since.

    For llama.cpp (`to="gguf"`) the language model and "mmproj", vision encoder and connector, are a
    file each.

    Args:
        model: The model, or its name or folder.
        folder: Where to; it must not exist, or be empty.
        to: The library, "transformers", or the format of llama.cpp, "gguf".
        lora: "merge" adds LoRA to the weights that it adapts; "peft" writes it as a folder of
            PEFT's inside of the folder, "adapter".
        device: Where a model that is named is loaded.
        dtype: Data type of its weights, which is that of the files. Of GGUF "f16" ("auto"), "f32"
            or "q8_0"; a model that is named is then loaded in float32.

    Returns:
        What was written, and how far its logits are from the model's.

    Raises:
        ConfigError: If there is no such library, or no such way to write LoRA.
        OutputError: If the folder holds something or cannot be written, or the disk is full.
        CheckpointError: If there is no such model.
        ExportError: If the other library has no class for such a model, or what was written is not
            the model; nothing of it is left then.

    Example:
        >>> import isthmus as im
        >>> im.export(im.compose("tiny-vit", "tiny-lm", im.Linear()), "out")
        Traceback (most recent call last):
        ...
        isthmus.errors.ExportError: the model cannot be exported: its connector is Linear, ...
    """
    if to not in TARGETS:
        raise ConfigError(f'unknown library to export to, "{to}": {suggestion(to, TARGETS)}')
    if lora not in WAYS:
        raise ConfigError(f'unknown way to export LoRA, "{lora}": {suggestion(lora, WAYS)}')
    target = free_place(Path(folder))
    if to == "gguf":
        return _export_gguf(model, target, size_named(dtype), lora, device)
    if not isinstance(model, torch.nn.Module):
        model = _load(model, device, dtype)
    refuse_whole(model, "export")
    if isinstance(model, DualEncoder):
        return export_dual(model, target)
    with exactly():
        return export_vlm(model, target, lora)


def _export_gguf(
    model: VisionLanguageModel | DualEncoder | str | Path,
    target: Path,
    size: str,
    lora: str,
    device: str | torch.device,
) -> Exported:
    """Writes a model for llama.cpp."""
    name = "the model" if isinstance(model, torch.nn.Module) else f'"{model}"'
    if not isinstance(model, torch.nn.Module):
        model = _load(model, device, None, projector)
    if isinstance(model, DualEncoder):
        raise ExportError(
            f"{name} is a dual encoder, which llama.cpp does not run: expected a vision-language "
            'model; to="transformers" writes one of hf:REPO'
        )
    if model.text_only:
        raise language_alone(model.config.language.name)
    refuse_unknown(model.config, name, projector)
    with exactly():
        return write_gguf(model, target, size, lora)


def _load(
    source: str | Path,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    target: Target | None = None,
) -> VisionLanguageModel | DualEncoder:
    """A model by its name, refused before its parts are loaded where that can be told."""
    source = fetched(source)
    if kind_of(source) != "vlm":
        return load_clip(source, device=device, dtype=dtype)
    refuse_whole_name(f"hf:{source}" if is_transformers_folder(source) else str(source))
    scheme, _, repository = str(source).partition(":")
    if scheme == "asset" or (scheme == "hf" and family_of(repository) is None):
        raise language_alone(str(source))
    if scheme == "hf" or is_transformers_folder(source) or reader_of(source) is not None:
        return load_vlm(source, device=device, dtype=dtype)
    values = describe(place := locate(source), "vlm")["config"]
    own = values["connector"].get("type") == "own"
    shown = {**values, "connector": {"type": "linear"}} if own else values
    config = model_from_mapping(shown, untrusted=place)
    refuse_unknown(replace(config, connector=None) if own else config, f'"{source}"', target)
    return load_vlm(source, device=device, dtype=dtype)
