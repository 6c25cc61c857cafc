"""Adapters in sight of images: PEFT's numbers where all is in sight, none where nothing is."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import isthmus as im
from isthmus import testing
from isthmus.config.file import model_from_mapping, to_mapping
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.tiny import FAMILIES, byte_tokenizer, tiny_language_model
from isthmus.model.batch import Batch
from isthmus.model.fusion.adapter import LowRank, linear_maps
from isthmus.model.vlm import VisionLanguageModel

# of PEFT's own making, under Transformers 5.24
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
WHEN = ("image", "after", "sample")
CROSS: dict[str, Any] = {"every": 2, "heads": 2, "head_dim": 8, "ffw_mult": 2}


def made(family: str = "llama", when: str = "after", **options: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    adapter = im.Adapter(rank=3, when=when, **options)  # type: ignore[arg-type]
    model = im.compose(
        "tiny-vit",
        tiny_language_model(family),
        im.Pool(tokens=4),
        im.Inline(adapter=adapter),
        tokenizer=byte_tokenizer(),
    )
    fill(model)
    return model


def fill(model: VisionLanguageModel) -> None:
    """Gives the second matrices values: they start at zero."""
    assert model.fusion.adapter is not None
    with torch.no_grad():
        for low in model.fusion.adapter.maps.values():
            assert isinstance(low, LowRank)
            low.lora_B.weight.normal_(std=0.3)


def images(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


def mixed(model: VisionLanguageModel, side: str = "left") -> Batch:
    """A row with text before its image, a row without any, and a row of two images."""
    texts = ["So it is: <image>what?", "no image here", "<image>a<image>"]
    one, two, three = images(3)
    return model.prepare(texts, [[one], [], [two, three]], padding_side=side)


@torch.no_grad()
def bare(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """Logits of the bare language model on what the fusion makes of a batch."""
    with model.in_sight(batch) as embeddings:
        pass
    places = model.language.places(batch.attention_mask, None)
    logits: Tensor = model.language.model(inputs_embeds=embeddings, **places).logits
    return logits


def from_peft(model: VisionLanguageModel, folder: Path) -> Any:
    """The language model with the adapters as PEFT loads them."""
    adapter = model.fusion.adapter
    assert adapter is not None
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.peft_config(model.language)))
    save_file(adapter.peft_tensors(model.language), folder / "adapter_model.safetensors")
    whole = peft.PeftModel.from_pretrained(copy.deepcopy(model.language.model), str(folder))
    return whole.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_where_all_is_in_sight_it_is_peft_s_lora(family: str, tmp_path: Path) -> None:
    model = made(family, "sample")
    batch = model.prepare(["It is <image>a cat"], [images(1)])
    with model.in_sight(batch) as embeddings:
        pass
    places = model.language.places(batch.attention_mask, None)
    theirs = from_peft(model, tmp_path)
    expected = theirs(inputs_embeds=embeddings, **places).logits
    got = model(batch).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    away = (expected - bare(model, batch)).abs().max()
    assert away > 1e-2  # and it is no small matter


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_is_the_bare_language_model_s_bit_for_bit(family: str, when: str) -> None:
    model = made(family, when)
    text = model.prepare(["no image", "none here either"])
    assert torch.equal(model(text).logits, bare(model, text))
    for side in ("left", "right"):
        batch = mixed(model, side)
        words = model.language.vocab_rows
        got, expected = model(batch).logits[..., :words], bare(model, batch)
        assert torch.equal(got[1], expected[1])
        own = batch.attention_mask[0].bool()
        ids = batch.input_ids[0][own].tolist()
        first = ids.index(model.special_tokens.image_id)
        before = torch.equal(got[0][own][:first], expected[0][own][:first])
        assert before == (when != "sample")
        assert not torch.allclose(got[0][own][first:], expected[0][own][first:], atol=1e-3)


@torch.no_grad()
def test_on_images_alone_a_map_says_more_of_an_image_s_own_tokens_and_of_no_others() -> None:
    model = made(when="image")
    batch = mixed(model)
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: seen.update({name: output})

    first = model.language.layers[0].self_attn.q_proj
    places = model.language.places(batch.attention_mask, None)
    with model.in_sight(batch) as embeddings:
        handle = first.register_forward_hook(note("adapted"))  # behind the adapter's own
        model.language.model(inputs_embeds=embeddings, **places)
        handle.remove()
    handle = first.register_forward_hook(note("bare"))
    bare(model, batch)
    handle.remove()
    moved = (seen["adapted"] != seen["bare"]).any(dim=-1)
    assert torch.equal(moved, batch.input_ids == model.special_tokens.image_id)


def test_from_the_first_image_on_and_the_whole_sample() -> None:
    after, sample = made(when="after"), made(when="sample")
    batch = mixed(after)
    is_image = batch.input_ids == after.special_tokens.image_id
    assert after.fusion.adapter is not None
    assert sample.fusion.adapter is not None
    where = after.fusion.adapter.see(is_image, batch.attention_mask)
    begun = is_image.long().cumsum(dim=1) > 0
    assert torch.equal(where.prompt, begun & batch.attention_mask.bool())
    assert where.then.tolist() == [True, False, True]
    where = sample.fusion.adapter.see(is_image, batch.attention_mask)
    has = torch.tensor([True, False, True])
    assert torch.equal(where.prompt, has[:, None] & batch.attention_mask.bool())


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(
    "fusion", [im.Inline(), im.CrossAttention(**CROSS), im.CrossAttention(inline=True, **CROSS)]
)
def test_a_model_with_adapters_passes_the_conformance_suite(fusion: Any, when: str) -> None:
    torch.manual_seed(0)
    chosen = replace(fusion, adapter=im.Adapter(rank=2, start=1, when=when))  # type: ignore[arg-type]
    model = im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4), chosen)
    if not model.fusion.in_text:
        testing.check_closed_gates(model, fresh=True)
    fill(model)
    testing.check_text_is_untouched(model)
    testing.check_padding(model)
    testing.check_decoding(model)
    testing.check_packing(model)
    testing.check_gradient_checkpointing(model)
    testing.check_training_step(model)
    testing.check_copies(model)
    testing.check_language_model_is_free(model)
    testing.check_save_and_load(model)
    testing.check_evaluation_mode(model)


@pytest.mark.parametrize("when", WHEN)
def test_beams_are_adapted_as_the_rows_they_come_from(when: str) -> None:
    model = made(when=when)
    batch = mixed(model)
    together = im.generate(model, batch, max_new_tokens=4, num_beams=3, do_sample=False)
    for row, (text, shown) in enumerate(
        zip(
            ["So it is: <image>what?", "no image here", "<image>a<image>"],
            [images(3)[:1], [], images(3)[1:]],
            strict=True,
        )
    ):
        alone = im.generate(
            model, model.prepare([text], [shown]), max_new_tokens=4, num_beams=3, do_sample=False
        )[0]
        kept = [i for i in together[row].tolist() if i != model.pad_id]
        assert kept == [i for i in alone.tolist() if i != model.pad_id]


def test_maps_and_layers_are_chosen_by_name() -> None:
    model = made(maps=("q_proj", "mlp.down_proj"), start=2)
    assert model.fusion.adapter is not None
    assert list(model.fusion.adapter.maps) == [
        *("2/self_attn/q_proj", "2/mlp/down_proj", "3/self_attn/q_proj", "3/mlp/down_proj"),
    ]
    with pytest.raises(ConfigError, match=r"called qproj: a layer has self_attn\.q_proj"):
        made(maps=("qproj",))
    with pytest.raises(ConfigError, match="from layer 9 on of 4 layers"):
        made(start=9)


def test_adapters_are_not_put_on_adapters() -> None:
    language = im.LanguageConfig(name="tiny-lm", lora_rank=2)
    with pytest.raises(ConfigError, match=r"lora_rank = 2 beside fusion\.adapter"):
        im.compose("tiny-vit", language, im.Pool(tokens=4), im.Inline(adapter=im.Adapter()))


def test_experts_have_no_adapters() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        vocab_size=300,
    )
    torch.manual_seed(0)
    language = AutoModelForCausalLM.from_config(config).eval()
    named = im.LanguageConfig(name="hf:mixtral")
    maps = linear_maps(LanguageModel(language, byte_tokenizer(), named).layers[0])
    assert {"self_attn.q_proj", "self_attn.o_proj"} <= maps.keys()
    assert not any("experts" in path for path in maps)


@torch.no_grad()
def test_what_peft_has_trained_can_be_loaded(tmp_path: Path) -> None:
    model, other = made(when="sample"), made(when="sample", alpha=1.5)
    from_peft(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fresh = made(when="sample")
    assert fresh.fusion.adapter is not None
    fill(fresh)
    fresh.fusion.adapter.load_peft(tensors, fresh.language)
    batch = mixed(model)
    assert torch.equal(fresh(batch).logits, model(batch).logits)
    assert not torch.allclose(other(batch).logits, model(batch).logits)
    tensors.popitem()
    with pytest.raises(CheckpointError, match="the adapter does not fit"):
        fresh.fusion.adapter.load_peft(tensors, fresh.language)


def test_adapters_learn_and_nothing_else_of_the_language_model_does() -> None:
    model = made()
    batch = mixed(model)
    labels = batch.input_ids.masked_fill(
        (batch.attention_mask == 0) | (batch.input_ids >= model.special_tokens.image_id), -100
    )
    loss = model(replace(batch, labels=labels)).loss
    assert loss is not None
    loss.backward()
    assert model.fusion.adapter is not None
    testing.check_gradients(model.fusion.adapter)
    assert all(p.grad is None for p in model.language.parameters())


def test_a_configuration_names_adapters(tmp_path: Path) -> None:
    model = im.compose(
        "tiny-vit",
        "tiny-lm",
        im.Pool(tokens=4),
        im.CrossAttention(**CROSS, adapter=im.Adapter(rank=4, maps=("q_proj",), when="image")),
    )
    values = to_mapping(model.config)
    assert values["fusion"]["adapter"]["when"] == "image"
    assert model_from_mapping(values) == model.config
    loaded = im.load(im.save(model, tmp_path / "model"))
    assert loaded.config == model.config
    values["fusion"]["adapter"]["when"] = "allways"
    with pytest.raises(ConfigError, match='when = "allways"'):
        model_from_mapping(values)


@torch.no_grad()
def test_a_map_keeps_every_value_out_of_sight_even_where_its_input_overflows() -> None:
    low = LowRank(4, 3, rank=2, scale=2.0).half()
    low.lora_A.weight.fill_(1.0)
    low.lora_B.weight.fill_(1.0)
    states = torch.tensor([[4e4] * 4, [1.0] * 4], dtype=torch.float16)
    output = torch.arange(6.0).view(2, 3).half()
    assert not (states @ low.lora_A.weight.T)[0].isfinite().any()
    found = low(states, output, torch.tensor([[True], [False]]))
    assert found.tolist() == [[0.0, 1.0, 2.0], [19.0, 20.0, 21.0]]


@torch.no_grad()
@pytest.mark.parametrize("path", ["layers.1", "layers.1.self_attn", "layers.1.mlp.up_proj"])
def test_modules_that_are_put_in_afterwards_are_adapted(path: str) -> None:
    model = made()
    batch = mixed(model)
    expected = model(batch).logits
    owner, _, name = path.rpartition(".")
    parent = model.language.model.model.get_submodule(owner)
    parent.register_module(name, copy.deepcopy(parent.get_submodule(name)))
    assert torch.equal(model(batch).logits, expected)


@torch.no_grad()
def test_terms_that_are_put_in_afterwards_act() -> None:
    model = made()
    batch = mixed(model)
    before = model(batch).logits
    adapter = model.fusion.adapter
    assert adapter is not None
    for key, low in adapter.maps.items():
        own = copy.deepcopy(low)
        assert isinstance(own, LowRank)
        own.lora_B.weight.zero_()
        adapter.maps[key] = own
    after = model(batch).logits
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(model)(batch).logits)
