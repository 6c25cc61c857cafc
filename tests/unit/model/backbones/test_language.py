from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import isthmus as im
from isthmus import testing
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.decoder_layers import find_decoder_layers
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_in_every_family(family: str) -> None:
    layers = find_decoder_layers(tiny_language_model(family, layers=3))
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1


def test_the_search_fails_with_the_candidates_and_a_path_overrides_it() -> None:
    model = tiny_language_model(layers=3)
    model.model.second = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(ConfigError, match=r"found 2.*model\.layers \(3\), model\.second \(3\)"):
        find_decoder_layers(model)
    assert find_decoder_layers(model, "model.layers") is model.model.layers
    with pytest.raises(ConfigError, match=r'"model\.lawyers" is not a list of modules'):
        find_decoder_layers(model, "model.lawyers")


def test_a_nested_list_does_not_compete_with_the_outer_one() -> None:
    model = tiny_language_model(layers=2)
    model.model.layers[0].inner = nn.ModuleList(nn.Identity() for _ in range(2))
    assert find_decoder_layers(model) is model.model.layers


def test_names_and_objects() -> None:
    with pytest.raises(ConfigError, match="unknown language model"):
        im.load_language("gpt2")
    with pytest.raises(ConfigError, match="needs tokenizer="):
        im.load_language(tiny_language_model())


def test_a_hub_name_without_network_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='cannot load "hf:'):
        im.load_language("hf:nobody/no-such-model")


def test_a_saved_folder_loads_with_start_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tiny_language_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = im.load_language(f"hf:{tmp_path}")
    assert fingerprint(loaded.model) == fingerprint(tiny_language_model())
    assert loaded.encode("ab") == [97, 98]


def test_a_begin_token_stands_before_every_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 257)]
    )
    language = im.load_language(tiny_language_model(), tokenizer=tokenizer)
    assert language.start_ids == [257]
    model = im.compose("tiny-vit", language, im.Linear())
    assert model.prepare(["ab"]).input_ids.tolist() == [[257, 97, 98]]


def test_fingerprints_tell_models_apart_and_precisions_not() -> None:
    model = tiny_language_model()
    first = fingerprint(model)
    assert fingerprint(tiny_language_model(seed=1)) != first
    assert fingerprint(tiny_language_model().bfloat16()) == first
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert fingerprint(model) != first


@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2)])
def test_lora_learns_and_the_base_stays(fusion: object) -> None:
    language = im.LanguageConfig(name="tiny-lm", lora_rank=2)
    model = im.compose("tiny-vit", language, im.Linear(), fusion)
    trained = model.trained_parameters()
    adapters = [n for n in trained if "lora_" in n]
    assert adapters
    assert all(
        n.startswith(("connector.", "fusion.", "special_tokens."))
        for n in trained
        if n not in adapters
    )
    testing.check_training_step(model)
    assert any(trained[n].abs().max() > 0 for n in adapters if "lora_B" in n)
    testing.check_save_and_load(model)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_dropout_stays_silent_where_training_mode_is_needed(family: str) -> None:
    language = im.load_language(tiny_language_model(family), tokenizer=byte_tokenizer())
    language.checkpoint_activations()
    language.train()
    ids = torch.tensor([[1, 2, 3]])
    first, second = (language.model(ids).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2, gate=0.5)])
def test_half_precision_answers(dtype: torch.dtype, fusion: object) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), fusion, dtype=dtype)
    logits = model(testing.prompts_of(model)).logits
    assert logits.dtype == dtype
    full = im.compose("tiny-vit", "tiny-lm", im.Linear(), fusion)
    full.load_state_dict(model.state_dict())
    expected = full(testing.prompts_of(full)).logits
    finite = expected.isfinite()
    scale = expected[finite].abs().max()
    assert (
        logits[finite].float() - expected[finite]
    ).abs().max() < 0.08 * scale  # bf16 keeps 8 bits, layer after layer


@pytest.mark.parametrize("rows", [slice(40, 50), slice(257, 258)])
def test_a_few_changed_rows_are_another_model(rows: slice) -> None:
    """As after training on a few words: no sample of the weights is sure to meet them."""
    model = tiny_language_model()
    first = fingerprint(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] += 1.0
    assert fingerprint(model) != first


def test_an_exact_fingerprint_tells_precisions_apart() -> None:
    layer = torch.nn.Linear(3, 3)
    half = torch.nn.Linear(3, 3).bfloat16()
    half.load_state_dict(layer.state_dict())
    assert fingerprint(layer) == fingerprint(half)
    assert fingerprint(layer, exact=True) != fingerprint(half, exact=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_is_transformers_own(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """What a model computes, such as the frequencies of rotary positions, is not rounded."""
    model = tiny_language_model(family)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    own = im.load_language(model, tokenizer=byte_tokenizer(), dtype=dtype)
    ids = torch.arange(1, 250)[None] % 200
    assert torch.equal(own.model(ids).logits, theirs(ids).logits)
    again = im.load_language(tiny_language_model(family), tokenizer=byte_tokenizer())
    again.model.load_state_dict(model.state_dict())
    assert torch.equal(again.to(dtype).model(ids).logits, theirs(ids).logits)
