"""`export(..., to="gguf")`: two files that llama.cpp and what is built on it load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.exporting.card import gguf_card
from isthmus.exporting.exported import Exported
from isthmus.exporting.folder import appearing, refuse_full_disk, writing
from isthmus.exporting.language import refuse_other_heads
from isthmus.exporting.llama_cpp import language, projector, tokenizer
from isthmus.exporting.llama_cpp.check import same_language, same_tensors, same_visual
from isthmus.exporting.llama_cpp.sizes import kind_of, packed
from isthmus.exporting.llama_cpp.template import program_of
from isthmus.exporting.tokens import WrittenTokens, add_tokens
from isthmus.files import write_text
from isthmus.model.backbones.llama_cpp import ARCHITECTURES
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Span
from isthmus.prompts.templates import template_named

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's numbers for files that are mostly of a size."""


def file_names(size: str) -> tuple[str, str]:
    """The two files: the language model, and what shows it images.

    Example:
        >>> file_names("f16")
        ('model-F16.gguf', 'mmproj-F16.gguf')
    """
    return f"model-{size.upper()}.gguf", f"mmproj-{size.upper()}.gguf"


def write_gguf(model: VisionLanguageModel, target: Path, size: str, lora: str) -> Exported:
    """Writes a model as two files, reads them again and compares; see `run.export`.

    Raises:
        ConfigError: If LoRA is not to be merged.
        ExportError: If llama.cpp has no like of it, or what was written is not the model.
        OutputError: If it cannot be written.
    """
    if lora != "merge":
        raise ConfigError(f'lora = "{lora}" with GGUF: expected "merge", into the weights')
    projector.refuse_others(model)
    refuse_other_heads(model.language, projector.ARCHITECTURE)
    language.refuse_others(model.language)
    added = add_tokens(model)
    tokenizer.refuse_others(model, added)
    notes, mode = tuple(projector.notes_of(model)), model.training
    with appearing(target) as folder:
        try:
            model.eval()
            written = _write(model, folder, added, target, size)
            difference = _compare(model, folder, added, size)
            name = target.absolute().name
            write_text(folder / "README.md", gguf_card(model.config, name, file_names(size), notes))
        finally:
            model.train(mode)
    rounded = "" if size == "f32" else size
    return Exported(target, projector.ARCHITECTURE, written, difference, 0.0, notes, rounded)


def _write(
    model: VisionLanguageModel, folder: Path, added: WrittenTokens, target: Path, size: str
) -> int:
    """Writes both files; bytes of their tensors."""
    with torch.no_grad():
        words, images = language.tensors_of(model, added), projector.tensors_of(model)
    total = sum(_bytes(n, t, size) for part in (words, images) for n, t in part.items())
    refuse_full_disk(target, total)
    template = template_named(model.config.template, model.language.tokenizer)
    spaced = model.language.encode("a") != _behind(model, "a")
    starts = bool(model.language.start_ids)
    program = program_of(template, added, spaced=spaced, starts=starts)
    architecture = ARCHITECTURES[model.language.model.config.model_type]

    def keys_of_language(writer: Any) -> None:
        language.write_language(writer, model, added)
        tokenizer.write_tokenizer(writer, model, added, program)

    def keys_of_projector(writer: Any) -> None:
        projector.write_projector(writer, model)

    first, second = (folder / name for name in file_names(size))
    name = target.absolute().name
    if "mistral" in name.lower():  # which is no Llama to Transformers' reader, and to nobody else
        name = "model"
    with writing(target):
        _write_file(first, architecture, name, words, size, keys_of_language)
        _write_file(second, "clip", "mmproj", images, size, keys_of_projector)
    return total


def _write_file(
    path: Path,
    architecture: str,
    name: str,
    tensors: Mapping[str, Tensor],
    size: str,
    keys: Callable[[Any], None],
) -> None:
    """Writes a file."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    try:
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[size])
        writer.add_quantization_version(2)
        keys(writer)
        for tensor_name, tensor in tensors.items():
            values, kind = packed(tensor_name, tensor, size)
            writer.add_tensor(tensor_name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _compare(model: VisionLanguageModel, folder: Path, added: WrittenTokens, size: str) -> float:
    """Largest difference of two logits.

    Raises:
        ExportError: If anything differs.
    """
    first, second = (folder / name for name in file_names(size))
    with torch.no_grad():
        same_tensors(first, language.tensors_of(model, added), size)
        same_tensors(second, projector.tensors_of(model), size)
    same_visual(second, model, size)
    return same_language(first, model, added, size)


def _behind(model: VisionLanguageModel, text: str) -> list[int]:
    """Token ids of a text that stands behind another."""
    return model.special_tokens.spans.encode([Span(text)], goes_on=True)


def _bytes(name: str, tensor: Tensor, size: str) -> int:
    from gguf import GGML_QUANT_SIZES

    values, stored = GGML_QUANT_SIZES[kind_of(name, tensor, size)]
    return tensor.numel() * stored // values
