"""A language model as files that llama.cpp loads: its weights, and adapters as a LoRA.

A tensor is written in the smallest kind that holds its values as they are: what was read from a
Q4_1 file goes back bit by bit. Values that no kind holds are rounded to Q8_0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.llama_cpp import ARCHITECTURES, named, write_keys
from isthmus.model.fusion.adapter import LowRank
from isthmus.model.vlm import VisionLanguageModel

TABLES = ("token_embd.weight", "output.weight")
ROWS = 4096
"""Rows of a tensor that are looked at together."""


def write_model(model: VisionLanguageModel, path: Path, *, exact: bool = False) -> None:
    """Writes a model's language model for llama.cpp, without a tokenizer.

    Where the two tokens are rows beside the table, they follow it. The row of `<|endofchunk|>` is
    that of the head: nothing is decoded behind it, so its embedding is never read.

    Args:
        model: The model.
        path: The file.
        exact: Whether all is float32.
    """
    language = model.language
    table, head = language.input_embedding.weight, language.output_embedding.weight
    rows = language.vocab_rows
    tensors = dict(language.model.base_model.state_dict())
    name = next(n for n, t in tensors.items() if t.data_ptr() == table.data_ptr())
    tied = table.data_ptr() == head.data_ptr()
    tokens = model.special_tokens
    if isinstance(tokens, AddedTokens):
        more = torch.zeros(2, language.width)
        more[1] = tokens.output_rows[0].detach()
        rows += 2
        tensors[name] = torch.cat([_plain(table), more if tied else torch.zeros_like(more)])
        head = torch.cat([_plain(head), more])
    if not tied:
        tensors["lm_head.weight"] = head

    def keys(writer: Any) -> None:
        writer.add_tokenizer_model("no_vocab")
        write_keys(writer, language.model.config, rows)

    _write(
        path,
        _architecture(model),
        keys,
        named(language, tensors),
        _kind_of(exact, language.vocab_rows),
    )


def write_adapter(model: VisionLanguageModel, path: Path) -> None:
    """Writes adapters that act in sight of images as a LoRA of llama.cpp's.

    Args:
        model: The model, whose fusion has some.
        path: The file.
    """
    from gguf import GGMLQuantizationType as Kind

    adapter, language = model.fusion.adapter, model.language
    assert adapter is not None
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    scale = 0.0
    for key, low in adapter.maps.items():
        assert isinstance(low, LowRank)
        own, scale = f"layers.{key.replace('/', '.')}.weight", low.scale
        first[own], second[own] = low.lora_A.weight, low.lora_B.weight
    outputs = named(language, second)  # whose rows are those of the map
    outputs.pop("rope_freqs.weight", None)
    tensors = {f"{name}.lora_b": tensor for name, tensor in outputs.items()}
    inputs = zip(outputs, first.values(), strict=True)
    tensors |= {f"{name}.lora_a": tensor for name, tensor in inputs}

    def keys(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", scale * adapter.config.rank)

    _write(path, _architecture(model), keys, tensors, lambda name, tensor: Kind.F32)


def _write(
    path: Path,
    architecture: str,
    keys: Callable[[Any], None],
    tensors: Mapping[str, Tensor],
    kind_of: Callable[[str, Tensor], Any],
) -> None:
    from gguf import GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    try:
        writer.add_quantization_version(2)
        keys(writer)
        for name, tensor in tensors.items():
            values = _plain(tensor)
            kind = kind_of(name, values)
            writer.add_tensor(name, quantize(values.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _kind_of(exact: bool, words: int) -> Callable[[str, Tensor], Any]:
    """The kind that a tensor is written in: the smallest that holds it as it is, else Q8_0.

    Rows behind the words' of a table are rounded as the words are: to keep two of them would round
    all others, and make the table twice as large.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    def choose(name: str, tensor: Tensor) -> Any:
        if exact or tensor.ndim < 2 or tensor.shape[-1] % 32:
            return Kind.F32
        # a few first, the last among them, which tells most tensors; then all
        tensor = tensor[:words] if name in TABLES else tensor
        few = tensor[torch.linspace(0, len(tensor) - 1, min(len(tensor), 64)).long()]
        for kind in (Kind.Q4_0, Kind.Q4_1):
            if all(
                numpy.array_equal(dequantize(quantize(rows, kind), kind), rows)
                for rows in (own.numpy() for own in (few, *torch.split(tensor, ROWS)))
            ):
                return kind
        return Kind.Q8_0

    return choose


def _plain(tensor: Tensor) -> Tensor:
    """A tensor as NumPy takes it."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _architecture(model: VisionLanguageModel) -> str:
    return ARCHITECTURES[model.language.model.config.model_type]
