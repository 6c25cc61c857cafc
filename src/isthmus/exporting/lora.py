"""LoRA as a folder of PEFT's beside the weights that it adapts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from isthmus.errors import ExportError, MissingExtraError
from isthmus.model.vlm import VisionLanguageModel

WAYS = ("merge", "peft")
ADAPTER = "adapter"
"""Name of the folder inside of an exported one; at its top Transformers would load it unasked."""
INSIDE = "model.language_model"
"""Where the decoder is in Transformers' classes."""


def refuse_way(model: VisionLanguageModel, way: str) -> None:
    """Refuses a way that a model has no LoRA for.

    Raises:
        ExportError: If it has none.
        MissingExtraError: If PEFT is not installed.
    """
    if way != "peft":
        return
    if not model.language.config.lora_rank:
        raise ExportError(
            'the model has no LoRA (language.lora_rank = 0): expected some for lora = "peft"; '
            "leave it out"
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('exporting LoRA (lora = "peft")', "train") from error


def write_adapter(model: VisionLanguageModel, folder: Path, name: str) -> None:
    """Writes a model's LoRA.

    Args:
        model: The model.
        folder: Where to; made if missing.
        name: What the exported model is called.
    """
    import peft

    layers = adapted_layers(model)
    ends = sorted({path.rpartition(".")[2] for path in layers})
    rank = model.language.config.lora_rank
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=rf"{re.escape(INSIDE)}\..*\.({'|'.join(ends)})",
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)["default"].weight.detach().contiguous()
            tensors[f"base_model.model.{INSIDE}.{path}.{part}.weight"] = weight
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def adapted_layers(model: VisionLanguageModel) -> dict[str, Any]:
    """The decoder's layers with LoRA, by their paths in it."""
    base = model.language.model.base_model
    return {n: layer for n, layer in base.named_modules() if hasattr(layer, "base_layer")}
