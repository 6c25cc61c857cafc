"""Decoder layers computed with few calls: what they say, and when they are not used."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import isthmus as im
from isthmus.cpu import Kernel
from isthmus.model.backbones import fast_path, int8_layers
from isthmus.model.backbones.fast_path import FastLayer, take_fast_path
from isthmus.model.backbones.int8_layers import exactly, to_int8
from isthmus.model.backbones.states import as_states
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model

OF_THE_FORM = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
OTHERS = ("gemma", "gemma3", "phi", "phi3", "gpt_neox", "olmo2", "opt")


def exact_product(weight: Tensor, scales: Tensor) -> Any:
    whole = weight.double()
    return lambda states: (states.round().double() @ whole.T * scales.double()).float()


@pytest.fixture(autouse=True)
def exact_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel in float64, which every CPU has."""
    kernel = Kernel("exact", 127, exact_product)
    monkeypatch.setattr(int8_layers, "int8_kernel", lambda: kernel)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each layer that was computed with few calls."""
    found: list[int] = []
    inner = FastLayer._computed

    def counting(self: FastLayer, *given: Any) -> Tensor:
        found.append(1)
        return inner(self, *given)

    monkeypatch.setattr(FastLayer, "_computed", counting)
    return found


def away(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def language(family: str = "llama", **sizes: int) -> Any:
    """A language model whose layers are wide enough, with large weights."""
    model = tiny_language_model(family, layers=3, width=256, **sizes)
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn(value.shape, generator=make))
            elif value.dim() == 2:
                value.mul_(2)
    return model


def passes(model: Any) -> Iterator[Tensor]:
    """Logits of prompts of two lengths, of four more tokens of each, and of one token alone."""
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    states = DynamicCache(config=model.config)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        yield model(
            ids, attention_mask=mask, position_ids=places, **as_states(model, states)
        ).logits[:, -6:]
        for step in range(4):
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            given = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
            yield model(ids[:, step, None], **as_states(model, states), **given).logits
        own = DynamicCache(config=model.config)
        yield model(ids[:1], **as_states(model, own)).logits
        for step in range(3):
            yield model(ids[:1, step, None], **as_states(model, own)).logits
        yield model(ids[:1, :3], **as_states(model, own)).logits  # several behind a prefix


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", OF_THE_FORM)
def test_it_computes_what_the_layers_do(family: str, computed: list[int]) -> None:
    model = language(family)
    expected = list(passes(model))
    to_int8(model)
    int8 = list(passes(model))
    assert take_fast_path(model) == 3
    before = len(computed)
    with exactly():
        found = list(passes(model))
    assert len(computed) - before == 3 * len(found)
    for got, exact in zip(found, expected, strict=True):
        assert away(got, exact) < 1e-4  # sharp attention makes rounding larger
    # in int8 a number between two steps may be rounded to either, and later layers make it more
    for got, rounded, exact in zip(passes(model), int8, expected, strict=True):
        assert 0 < away(got, exact) < 1.5 * away(rounded, exact) + 0.01


@pytest.mark.parametrize("family", OTHERS)
def test_layers_of_another_form_stay_as_they_are(family: str, computed: list[int]) -> None:
    model = language(family)
    to_int8(model)
    before = list(passes(model))
    assert take_fast_path(model) == 0
    computed.clear()  # what was tried out
    assert all(torch.equal(a, b) for a, b in zip(passes(model), before, strict=True))
    assert not computed


def test_a_layer_that_looks_the_same_and_is_not_is_found_out() -> None:
    model = language()

    class Doubled(type(model.model.layers[0])):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
            return super().forward(hidden_states, *args, **options) * 2

    model.model.layers[1].__class__ = Doubled
    to_int8(model)
    assert take_fast_path(model) == 2
    assert "forward" not in vars(model.model.layers[1])


def test_layers_too_narrow_for_int8_stay_as_they_are() -> None:
    model = tiny_language_model("llama", layers=2, width=128)  # its key heads are 64 wide
    to_int8(model)
    assert take_fast_path(model) == 0


# --- when it is not used --------------------------------------------------------------------------


def test_own_layers_where_a_gradient_or_attention_is_wanted(computed: list[int]) -> None:
    model = language()
    ids = torch.arange(3, 9)[None]
    expected = model(ids).logits
    to_int8(model)
    assert take_fast_path(model) == 3
    computed.clear()
    assert torch.equal(model(ids).logits, expected)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert model(ids, output_attentions=True).attentions[0].shape[-1] == 6
    assert not computed
    model.set_attn_implementation("sdpa")
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        half(ids)
    assert not computed


def test_hooks_inside_of_a_layer_are_called(computed: list[int]) -> None:
    model = language()
    ids = torch.arange(3, 9)[None]
    to_int8(model)
    take_fast_path(model)
    copied = copy.deepcopy(model)
    computed.clear()
    seen: list[int] = []
    with torch.no_grad():
        plain = model(ids).logits
        for one in (model, copied):
            seen.clear()
            layer = one.model.layers[1]
            inner = layer.mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
            outer = layer.register_forward_hook(lambda *_: seen.append(2))
            one(ids)
            assert seen == [1, 2]
            inner.remove()
            outer.remove()
        layer = model.model.layers[1]
        layer.mlp.down_proj = nn.Linear(512, 256)
        assert not torch.equal(model(ids).logits, plain)
    assert len(computed) == 3 + 2 + 2 + 2


@pytest.mark.parametrize("part", ["self_attn", "mlp", "input_layernorm"])
def test_parts_that_are_put_in_afterwards_compute(part: str, computed: list[int]) -> None:
    model = language()
    ids = torch.arange(3, 9)[None]
    to_int8(model)
    take_fast_path(model)
    layer = model.model.layers[1]
    other = copy.deepcopy(getattr(layer, part))
    computed.clear()
    with torch.no_grad(), exactly():
        before = model(ids).logits
        for value in other.parameters():
            value.mul_(2)
        setattr(layer, part, other)
        after = model(ids).logits
        assert away(after, before) > 0.01
        layer.__dict__.pop("forward")
        assert torch.equal(model(ids).logits, after)
    assert len(computed) == 3 + 2 + 2


class Odd(LlamaDecoderLayer):
    """Looks like a layer of the form, and says something else."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return 2 * super().forward(*args, **options)


def test_a_layer_is_tried_whatever_its_attention_is_at_that_time() -> None:
    model = language()
    model.set_attn_implementation("eager")
    to_int8(model)
    for layer in model.model.layers:
        layer.__class__ = Odd
    assert take_fast_path(model) == 0


def test_no_dropout_is_lost_and_attention_may_see_both_sides(computed: list[int]) -> None:
    model = language()
    ids = torch.arange(3, 9)[None]
    to_int8(model)
    assert take_fast_path(model) == 3
    computed.clear()
    with torch.no_grad(), exactly():
        model.train()
        model(ids)
        assert not computed
        model.eval()
        model.config.is_causal = False
        for layer in model.model.layers:
            layer.self_attn.is_causal = False
        got = model(ids).logits
        assert len(computed) == 3
        for layer in model.model.layers:
            layer.__dict__.pop("forward")
        torch.testing.assert_close(got, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_copies_have_weights_of_their_own() -> None:
    model = language()
    to_int8(model)
    take_fast_path(model)
    with torch.no_grad():
        before = list(passes(model))
        twin, copied = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
        for value in model.parameters():
            value.mul_(0.5)
        assert all(torch.equal(a, b) for a, b in zip(passes(twin), before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(passes(copied), before, strict=True))
        assert not torch.equal(next(passes(model)), before[0])


# --- in a vision-language model -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fusion",
    [
        im.Inline(),
        im.CrossAttention(every=2),
        im.Inline(adapter=im.Adapter(rank=4)),
        im.Inline(adapter=im.Adapter(rank=4, when="image")),
    ],
    ids=["inline", "cross_attention", "adapter", "adapter-image"],
)
def test_images_reach_it(fusion: Any, computed: list[int]) -> None:
    torch.manual_seed(0)
    parts = language("qwen2")
    model = im.compose("tiny-vit", parts, im.MLP(), fusion, tokenizer=byte_tokenizer())
    for name, value in model.named_parameters():
        if "lora_B" in name or "gate" in name:
            nn.init.normal_(value, std=0.3)
    images = [torch.randn(3, *model.vision.image_size) for _ in range(2)]
    batch = model.prepare(["<image>ab<image>cd", "abcdef"], [images, []])
    with torch.inference_mode():
        expected = model(batch).logits
        to_int8(model.language.model)
        assert take_fast_path(model.language.model) == 3
        computed.clear()
        with exactly():
            got = model(batch).logits
        finite = torch.isfinite(expected)
        assert away(got[finite], expected[finite]) < 1e-4
        assert len(computed) == 3
        rounded = model(batch).logits
    assert 0 < away(rounded[finite], expected[finite]) < 0.2
    prompts = [im.Prompt(f"<image>number {n}", (images[n],)) for n in range(2)]
    together = im.Engine(model).generate(prompts, max_new_tokens=6)
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = im.Engine(model).generate([prompt], max_new_tokens=6)
        assert alone.completions[0].text == found.completions[0].text


def test_the_shipped_default_takes_it() -> None:
    model = im.load("tiny", device="cpu")
    taken = sum("forward" in vars(layer) for layer in model.language.layers)
    assert taken == (30 if model.language.computes_in == "int8" else 0)
    assert fast_path.take_fast_path(im.load("tiny", dtype="float32").language.model) == 0
