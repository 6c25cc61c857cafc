"""What is written for llama.cpp is the language model, value by value; no binding is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

import isthmus as im
from isthmus import machine
from isthmus.generation import llama_file
from isthmus.generation.llama_cpp import unfit
from isthmus.generation.llama_file import write_adapter, write_model
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model


def inline(family: str = "llama", fusion: Any = None) -> im.VisionLanguageModel:
    torch.manual_seed(0)
    language = tiny_language_model(family)
    model = im.compose(
        "tiny-vit", language, im.Linear(), fusion or im.Inline(), tokenizer=byte_tokenizer()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def rounded(values: torch.Tensor, kind: Any) -> torch.Tensor:
    return torch.from_numpy(dequantize(quantize(values.detach().numpy(), kind), kind).copy())


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_values_that_a_kind_holds_go_back_bit_by_bit(tmp_path: Path, kind: Any) -> None:
    model = inline()
    layer = model.language.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        layer.copy_(rounded(layer, kind))
    write_model(model, tmp_path / "model.gguf")
    found = read(tmp_path / "model.gguf")["blk.0.ffn_gate.weight"]
    assert found.tensor_type == kind
    assert numpy.array_equal(dequantize(found.data, kind), layer.detach().numpy())


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_a_few_rows_that_a_kind_holds_do_not_stand_for_the_others(kind: Any) -> None:
    values = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    held = torch.from_numpy(dequantize(quantize(values.numpy(), kind), kind).copy())
    choose = llama_file._kind_of(False, 200)
    assert choose("map", held) == kind
    assert choose("output.weight", torch.cat([held, values[:2]])) == kind  # two tokens' beside
    odd = held.clone()
    odd[101] = values[101]
    for tensor in (
        torch.cat([held, values[:1]]),
        torch.cat([torch.zeros(80, 64), values]),
        odd,
    ):
        assert choose("map", tensor) == Kind.Q8_0


def test_other_values_are_rounded_to_q8_0_unless_all_is_to_be_exact(tmp_path: Path) -> None:
    model = inline()
    own = model.language.layers[1].mlp.down_proj.weight.detach()
    for exact, kind in ((False, Kind.Q8_0), (True, Kind.F32)):
        write_model(model, tmp_path / "model.gguf", exact=exact)
        found = read(tmp_path / "model.gguf")["blk.1.ffn_down.weight"]
        assert found.tensor_type == kind
        values = dequantize(found.data, kind)
        assert numpy.array_equal(values, own.numpy() if exact else rounded(own, kind).numpy())


def test_the_head_has_the_row_of_the_end_of_a_chunk(tmp_path: Path) -> None:
    model = inline()
    write_model(model, tmp_path / "model.gguf", exact=True)
    tensors = read(tmp_path / "model.gguf")
    tied = "output.weight" not in tensors
    head = torch.from_numpy(tensors["token_embd.weight" if tied else "output.weight"].data.copy())
    tokens = model.special_tokens
    assert len(head) == model.language.vocab_rows + 2
    assert torch.equal(head[tokens.end_id], tokens.output_rows[0])
    assert torch.equal(head[: len(head) - 2], model.language.output_embedding.weight)


def test_adapters_have_their_matrices_and_their_scale(tmp_path: Path) -> None:
    model = inline(fusion=im.Inline(adapter=im.Adapter(rank=4, alpha=6.0)))
    write_adapter(model, tmp_path / "adapter.gguf")
    tensors, fields = read(tmp_path / "adapter.gguf"), GGUFReader(tmp_path / "adapter.gguf").fields
    assert model.fusion.adapter is not None
    low: Any = model.fusion.adapter.maps["1/mlp/up_proj"]
    assert fields["adapter.lora.alpha"].contents() == 6.0
    assert torch.equal(
        torch.from_numpy(tensors["blk.1.ffn_up.weight.lora_a"].data.copy()), low.lora_A.weight
    )
    assert torch.equal(
        torch.from_numpy(tensors["blk.1.ffn_up.weight.lora_b"].data.copy()), low.lora_B.weight
    )


@pytest.mark.parametrize(
    ("family", "fusion", "told"),
    [
        ("llama", None, ""),
        ("qwen2", None, ""),
        ("qwen3", None, ""),
        ("gpt2", None, "its language model is a GPT2LMHeadModel"),
        ("gemma3", None, "its language model is a Gemma3ForCausalLM"),
        ("llama", im.CrossAttention(every=2), "blocks of its own"),
        ("llama", im.Inline(deepstack=1), "added behind layers"),
    ],
)
def test_what_llama_cpp_cannot_decode_for_is_told(family: str, fusion: Any, told: str) -> None:
    reason = unfit(inline(family, fusion))
    assert told in reason
    assert bool(told) == bool(reason)


def test_an_engine_that_is_unknown_or_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(im.ConfigError, match=r'unknown engine "lama": did you mean "llama"'):
        machine.check_engine("lama")
    monkeypatch.setattr(machine, "engines", lambda: ("torch",))
    with pytest.raises(im.MissingExtraError, match=r"isthmus\[llama\]"):
        im.load("tiny", engine="llama")
    with pytest.raises(im.ConfigError, match="generates nothing"):
        im.load("tiny-clip", engine="llama")
