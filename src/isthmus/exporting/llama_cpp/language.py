"""The language model's half: its tensors under llama.cpp's names, the two tokens among them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from isthmus.errors import ExportError
from isthmus.exporting.language import INSTEAD, language_tensors
from isthmus.exporting.tokens import WrittenTokens
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.llama_cpp import ARCHITECTURES, lacking, named, write_keys
from isthmus.model.vlm import VisionLanguageModel


def refuse_others(language: LanguageModel) -> None:
    """Refuses a language model that is not written for llama.cpp.

    Raises:
        ExportError: If its class is none of those that are known, or it has what that lacks.
    """
    if found := lacking(language):
        got, expected = found
        raise ExportError(
            f"{language.config.name} {got}, which is not written for llama.cpp: expected "
            f"{expected}; {INSTEAD}"
        )


def write_language(writer: Any, model: VisionLanguageModel, added: WrittenTokens) -> None:
    """Writes the keys of a language model.

    Args:
        writer: A `gguf.GGUFWriter` for the class that `ARCHITECTURES` names.
        model: The model.
        added: Its tokens.
    """
    write_keys(writer, model.language.model.config, added.rows)


def tensors_of(model: VisionLanguageModel, added: WrittenTokens) -> dict[str, Tensor]:
    """Every tensor by its name in llama.cpp; LoRA is merged."""
    try:
        return named(model.language, language_tensors(model, added))
    except KeyError as error:
        kind = model.language.model.config.model_type
        raise ExportError(
            f"{model.language.config.name} has a tensor {error.args[0]} that llama.cpp's class "
            f'"{ARCHITECTURES[kind]}" has no name for: expected a plain {kind}; {INSTEAD}'
        ) from None
