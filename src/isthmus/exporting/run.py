"""`export`: a model written as a folder that another library loads with its own classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from isthmus.config.file import model_from_mapping
from isthmus.errors import ConfigError, suggestion
from isthmus.exporting.dual import export_dual
from isthmus.exporting.exported import Exported
from isthmus.exporting.folder import free_place
from isthmus.exporting.lora import WAYS
from isthmus.exporting.vlm import export_vlm, language_alone, refuse_unknown
from isthmus.model.backbones.int8_layers import exactly
from isthmus.model.checkpoint import describe, load_vlm, locate
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.saving import kind_of
from isthmus.model.vlm import VisionLanguageModel

TARGETS = ("transformers",)


def export(
    model: VisionLanguageModel | DualEncoder | str | Path,
    folder: str | Path,
    *,
    to: Literal["transformers"] = "transformers",
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

    Args:
        model: The model, or its name or folder.
        folder: Where to; it must not exist, or be empty.
        to: The library, "transformers".
        lora: "merge" adds LoRA to the weights that it adapts; "peft" writes it as a folder of
            PEFT's inside of the folder, "adapter".
        device: Where a model that is named is loaded.
        dtype: Data type of its weights, which is that of the files.

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
    if not isinstance(model, torch.nn.Module):
        model = _load(model, device, dtype)
    if isinstance(model, DualEncoder):
        return export_dual(model, target)
    with exactly():
        return export_vlm(model, target, lora)


def _load(
    source: str | Path, device: str | torch.device, dtype: str | torch.dtype | None
) -> VisionLanguageModel | DualEncoder:
    """A model by its name, refused before its parts are loaded where that can be told."""
    if kind_of(source) != "vlm":
        return load_clip(source, device=device, dtype=dtype)
    if str(source).startswith(("hf:", "asset:")):
        raise language_alone(str(source))
    values = describe(place := locate(source), "vlm")["config"]
    own = values["connector"].get("type") == "own"
    shown = {**values, "connector": {"type": "linear"}} if own else values
    config = model_from_mapping(shown, untrusted=place)
    refuse_unknown(replace(config, connector=None) if own else config, f'"{source}"')
    return load_vlm(source, device=device, dtype=dtype)
