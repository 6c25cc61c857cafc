"""Whether rows may share a pass is a matter of structure, and not of precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import isthmus as im
from isthmus.generation import structure
from isthmus.generation.engine import Engine
from isthmus.generation.lanes import Lanes
from isthmus.generation.requests import GenerationRequest
from isthmus.generation.server import ServingEngine
from isthmus.generation.structure import takes_lanes, takes_trees, twin_of
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model
from isthmus.model.join import bare_language_model
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

SLIDING = ("gemma2", "gemma3")


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=64, n_layer=3, n_head=4))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = 258
    return model.eval()


def bare(family: str, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    language = bloom() if family == "bloom" else tiny_language_model(family)
    return bare_language_model(language.to(dtype), tokenizer=byte_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])
def test_the_precision_does_not_decide(family: str, dtype: torch.dtype) -> None:
    model = bare(family, dtype)
    assert twin_of(model.language) is not None
    assert takes_lanes(model) == (family not in (*SLIDING, "bloom"))
    assert takes_trees(model.language) == (family != "bloom")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_decoded_together(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    language = tiny_language_model("llama", layers=24).to(dtype)  # deep: rounding adds up
    model = im.compose("tiny-vit", language, im.Linear(), tokenizer=byte_tokenizer())
    passes: list[int] = []
    with ServingEngine(model) as server:
        model.language.model.register_forward_hook(lambda *_: passes.append(1))
        asked = [
            GenerationRequest(prompt=Prompt(text), max_new_tokens=30)
            for text in ("What is it?", "Why?", "A longer one, then?")
        ]
        for ticket in [server.submit(request) for request in asked]:
            ticket.result()
        found = server.statistics()
    assert found.rows_together is True
    assert len(passes) < found.decoded_tokens  # one by one there are as many
    engine = Engine(model)
    engine.run(asked)
    assert engine.statistics.rows_together is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "expected"), [("llama", True), ("bloom", False)])
def test_without_a_twin_the_models_own_noise_is_the_measure(
    family: str, expected: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "twin_of", lambda language: None)
    assert takes_lanes(bare(family, dtype)) is expected


def test_lanes_that_mix_rows_up_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Lanes.step

    def off_by_one(self: Lanes, ids: Sequence[int]) -> Tensor:
        return right(self, ids).roll(1, dims=0)

    def sees_too_much(self: Lanes, ids: Sequence[int]) -> Tensor:
        assert self._mask is not None
        self._mask.zero_()
        return right(self, ids)

    for wrong in (off_by_one, sees_too_much):
        monkeypatch.setattr(Lanes, "step", wrong)
        assert not takes_lanes(bare("llama", torch.bfloat16))
        assert not takes_lanes(bare("llama"))


def test_a_twin_keeps_what_matters_and_is_small() -> None:
    language = bare("gemma3", torch.bfloat16).language
    twin = twin_of(language)
    assert twin is not None
    own, small = language.model.config, twin.model.config
    assert small.layer_types == own.layer_types[: small.num_hidden_layers]
    assert small.sliding_window == own.sliding_window
    assert small.head_dim == own.head_dim
    groups = own.num_attention_heads // own.num_key_value_heads
    assert small.num_attention_heads // small.num_key_value_heads == groups
    assert small.vocab_size == 64
    assert twin.input_embedding.weight.dtype == torch.float32
    assert own.vocab_size == language.vocab_rows  # the model's own is as it was


def test_a_large_models_twin_is_small() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        large = LlamaForCausalLM(config)
    twin = structure._twin_of(large, byte_tokenizer())
    assert twin is not None
    assert twin.width == 1024
    assert sum(p.numel() for p in twin.parameters()) < 50_000_000


def test_trying_leaves_the_random_numbers_alone() -> None:
    model = bare("llama")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert takes_lanes(model)
    assert torch.equal(torch.rand(3), expected)
