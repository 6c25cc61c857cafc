"""Linear maps in int8: what they compute, when, and what adapters add to them."""

from __future__ import annotations

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isthmus as im
from isthmus import cpu, machine
from isthmus.cpu import Kernel
from isthmus.cpu import int8_kernel as kernel
from isthmus.errors import ConfigError
from isthmus.model.backbones import int8_layers, int8_map
from isthmus.model.backbones.int8_layers import Int8Linear, exactly, to_int8
from isthmus.model.backbones.int8_map import Int8Map
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model

EXAMPLES = Path(__file__).parents[4] / "examples"

needs_kernel = pytest.mark.skipif(
    not machine.int8_for("auto", "cpu"), reason="float32 is as fast on this CPU, or more exact"
)


def exact_product(weight: Tensor, scales: Tensor) -> Any:
    """A kernel in float64, which every CPU has."""
    whole = weight.double()
    return lambda states: (states.round().double() @ whole.T * scales.double()).float()


EXACT = Kernel("exact", 127, exact_product)
KERNELS = [EXACT, *(k for name in cpu._LIBRARIES if (k := cpu._exact(name)) is not None)]


@pytest.fixture
def some_kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The machine's own kernel, or where it has none one that is slow."""
    found = kernel() or EXACT
    monkeypatch.setattr(int8_layers, "int8_kernel", lambda: found)
    return found


def away(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


# --- maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 192), (1536, 576), (200, 129), (135, 130)])
@torch.no_grad()
def test_a_map_is_that_of_the_rounded_numbers(by: Kernel, inputs: int, outputs: int) -> None:
    weight, bias, states = (
        torch.randn(outputs, inputs),
        torch.randn(outputs),
        torch.randn(7, inputs),
    )
    size = min(inputs & -inputs, int8_map.BLOCK)
    turn = torch.block_diag(*[int8_map._hadamard(size)] * (inputs // size)).double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(inputs).double())
    turned, seen = weight.double() @ turn, states.double() @ turn
    rows = turned.abs().amax(1, keepdim=True) / 127
    tokens = seen.abs().amax(1, keepdim=True) / by.largest
    expected = ((seen / tokens).round() * tokens) @ ((turned / rows).round() * rows).T + bias
    got = Int8Map(weight, bias, by)(states)
    # a number that lies between two steps may be rounded to either
    assert away(got, expected.float()) < 1e-3
    assert away(got, F.linear(states, weight, bias)) < 0.02


@pytest.mark.parametrize("by", KERNELS, ids=lambda k: k.name)
@torch.no_grad()
def test_a_large_input_does_not_take_the_steps_of_the_others(by: Kernel) -> None:
    weight, states = torch.randn(256, 512), torch.randn(4, 512)
    weight[:, 7], states[:, 7] = 0, 100
    expected = F.linear(states, weight)
    found = away(Int8Map(weight, None, by)(states), expected)
    assert found < 0.07 * 127 / by.largest  # a CPU with fewer levels has wider steps
    steps = states.abs().amax(1, keepdim=True) / by.largest
    without = F.linear((states / steps).round() * steps, weight)
    # what it would be without turning
    assert away(without, expected) > max(0.15, 3 * found)


@pytest.mark.parametrize("by", KERNELS[1:], ids=lambda k: k.name)
@torch.inference_mode()
def test_a_token_alone_gets_the_numbers_that_it_gets_among_others(by: Kernel) -> None:
    own, states = Int8Map(torch.randn(192, 576), None, by), torch.randn(50, 576)
    together = own(states)
    for begin, end in ((0, 1), (3, 5), (10, 31)):
        torch.testing.assert_close(own(states[begin:end]), together[begin:end], rtol=0, atol=1e-3)


@torch.no_grad()
def test_zeros_stay_zeros() -> None:
    assert not Int8Map(torch.randn(128, 128), None, EXACT)(torch.zeros(2, 128)).any()
    assert not Int8Map(torch.zeros(128, 128), None, EXACT)(torch.randn(2, 128)).any()


# --- kernels --------------------------------------------------------------------------------------


def saturating(largest: int, weight: Tensor, scales: Tensor) -> Any:
    """As a CPU with AVX2 alone multiplies: pairs of products are added up in 16 bits."""

    def product(states: Tensor) -> Tensor:
        whole = (states.round() + largest + 1).double()
        pairs = (whole[:, None] * weight.double()).view(len(states), len(weight), -1, 2).sum(-1)
        sums = pairs.clamp(-32768, 32767).sum(-1) - (largest + 1) * weight.double().sum(1)
        return (sums * scales.double()).float()

    return product


def test_a_cpu_that_overflows_gets_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cpu._LIBRARIES, "saturating", saturating)
    found = cpu._exact("saturating")
    assert found is not None
    assert found.largest == 63


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, NotImplementedError])
def test_no_kernel_where_an_operator_is_missing_or_wrong(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(largest: int, weight: Tensor, scales: Tensor) -> Any:
        raise error("gone")

    def wrong(largest: int, weight: Tensor, scales: Tensor) -> Any:
        return lambda states: exact_product(weight, scales)(states) + 1

    monkeypatch.setattr(cpu, "_LIBRARIES", {"gone": gone, "wrong": wrong})
    kernel.cache_clear()
    try:
        assert kernel() is None
        layer, states = nn.Linear(128, 128), torch.randn(2, 128)
        expected = layer(states)
        assert to_int8(nn.ModuleList([layer])) == 1
        with torch.no_grad():
            assert torch.equal(layer(states), expected)
    finally:
        kernel.cache_clear()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_INT8", "0")
    kernel.cache_clear()
    machine.probe.cache_clear()
    try:
        assert kernel() is None
        assert not machine.int8_for("auto", "cpu")
        with pytest.raises(ConfigError, match='dtype is "int8" on cpu, and int8 is no faster'):
            machine.int8_for("int8", "cpu")
    finally:
        kernel.cache_clear()
        machine.probe.cache_clear()


# --- layers ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """Maps by the names that Transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(256, 256), nn.Linear(256, 128, bias=False)
        self.v_proj, self.o_proj = nn.Linear(256, 128), nn.Linear(256, 256)
        self.gate = nn.Linear(256, 2)

    def forward(self, states: Tensor) -> Tensor:
        found = [layer(states) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.cat([*found, self.o_proj(found[0]), self.gate(states)], dim=-1)


def test_layers_of_the_same_inputs_are_computed_together(some_kernel: Kernel) -> None:
    block, states = Block(), torch.randn(2, 3, 256)
    with torch.no_grad():
        exact = block(states)
        assert to_int8(block) == 4
        alone = torch.cat(
            [
                Int8Map(each.weight, each.bias, some_kernel)(states.flatten(0, 1)).view(2, 3, -1)
                for each in (block.q_proj, block.k_proj, block.v_proj)
            ],
            dim=-1,
        )
        got = block(states)
        torch.testing.assert_close(got[..., :512], alone, rtol=0, atol=1e-3)
        assert torch.equal(got, block(states))
        assert 0 < away(got, exact) < 0.03
        # in another order, and after one that was called alone
        block.k_proj(torch.randn(1, 256))
        assert torch.equal(block.v_proj(states), got[..., 384:512])
        assert torch.equal(block.q_proj(states), got[..., :256])


def test_threads_take_no_outputs_of_each_other(some_kernel: Kernel) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: nn.Linear(128, 128) for name in ("q_proj", "k_proj", "v_proj")})
    to_int8(layers)
    inputs = list(torch.randn(4, 2, 128))
    with torch.no_grad():
        expected = [[layer(own) for layer in layers.values()] for own in inputs]
    wrong: list[object] = []

    @torch.no_grad()
    def compute(number: int) -> None:
        for _ in range(1000):
            try:
                got = [layer(inputs[number]) for layer in layers.values()]
                same = all(torch.equal(a, b) for a, b in zip(got, expected[number], strict=True))
            except Exception as error:
                wrong.append(error)
            else:
                wrong.extend([number] * (not same))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(compute, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_weights_count_where_a_gradient_is_wanted(some_kernel: Kernel) -> None:
    block, states = Block(), torch.randn(2, 256)
    expected = block(states)
    to_int8(block)
    assert torch.equal(block(states), expected)
    with torch.no_grad(), exactly():
        assert torch.equal(block(states), expected)
    with torch.no_grad():
        assert not torch.equal(block(states), expected)
        half = copy.deepcopy(block).to(torch.bfloat16)
        assert half(states.bfloat16()).dtype == torch.bfloat16


def test_what_is_packed_follows_the_weights(some_kernel: Kernel) -> None:
    one, other, states = Block(), Block(), torch.randn(2, 256)
    to_int8(one)
    to_int8(other)
    with torch.no_grad():
        before, expected = one(states), other(states)
        twin = pickle.loads(pickle.dumps(one))
        copied = copy.deepcopy(one)
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(states), expected)
        assert torch.equal(copied(states), before)
        assert torch.equal(twin(states), before)
        copied.q_proj.weight.mul_(2)
        assert not torch.equal(copied(states), before)
        assert torch.equal(twin(states), before)


def test_a_bias_that_changes_alone_is_seen(some_kernel: Kernel) -> None:
    layers = nn.Sequential(nn.Linear(256, 256))
    to_int8(layers)
    states = torch.randn(2, 256)
    with torch.no_grad():
        before = layers(states)
        layers[0].bias.add_(5)
        torch.testing.assert_close(layers(states), before + 5)
        layers[0].bias = nn.Parameter(layers[0].bias + 1)
        torch.testing.assert_close(layers(states), before + 6)


# --- a language model -----------------------------------------------------------------------------


def joined(fusion: Any) -> Any:
    """A model whose layers are wide enough."""
    torch.manual_seed(0)
    language = tiny_language_model("llama", layers=3, width=256)
    model = im.compose("tiny-vit", language, im.MLP(), fusion, tokenizer=byte_tokenizer())
    for name, value in model.named_parameters():
        if "lora_B" in name or "gate" in name:
            nn.init.normal_(value, std=0.3)
    return model


def logits(model: Any, prompts: list[str], images: list[list[Tensor]]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(model.prepare(prompts, images)).logits
    return found


@pytest.mark.parametrize("when", ["image", "after", "sample"])
def test_adapters_act_where_an_image_is_in_sight_and_nowhere_else(
    when: Any, some_kernel: Kernel
) -> None:
    model = joined(im.Inline(adapter=im.Adapter(rank=4, when=when)))
    image = torch.randn(3, *model.vision.image_size)
    prompts, images = ["ab<image>cd", "abcdefgh"], [[image], []]
    exact, text = logits(model, prompts, images), logits(model, ["abcdefgh"], [[]])
    assert to_int8(model.language.model) == 22
    got, bare = logits(model, prompts, images), logits(model, ["abcdefgh"], [[]])
    finite = torch.isfinite(exact)
    assert away(got[finite], exact[finite]) < 0.15
    assert 0 < away(bare, text) < 0.15
    torch.testing.assert_close(got[1, -8:, : bare.shape[-1]], bare[0], rtol=0, atol=1e-3)
    with torch.inference_mode(), exactly():
        same = model(model.prepare(prompts, images)).logits
    torch.testing.assert_close(same[finite], exact[finite])
    # with a gradient, and none of it is left behind
    again = model(model.prepare(prompts, images)).logits
    torch.testing.assert_close(again[finite], exact[finite])
    assert not {
        id(layer.together.adapters.sight)
        for layer in model.modules()
        if isinstance(layer, Int8Linear)
    } - {id(None)}


def test_terms_of_adapters_are_in_the_weights(some_kernel: Kernel) -> None:
    model = joined(im.Inline(adapter=im.Adapter(rank=4, when="sample", maps=("down_proj",))))
    image = torch.randn(3, *model.vision.image_size)
    to_int8(model.language.model)
    got = logits(model, ["<image>abc"], [[image]])
    with torch.no_grad():
        for key, low in model.fusion.adapter.maps.items():
            layer = model.language.layers[int(key.partition("/")[0])].mlp.down_proj
            layer.weight.addmm_(low.lora_B.weight, low.lora_A.weight, alpha=low.scale)
            low.lora_B.weight.zero_()
    merged = logits(model, ["<image>abc"], [[image]])
    torch.testing.assert_close(got, merged, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "fusion", [im.Inline(), im.CrossAttention(every=2), im.Inline(adapter=im.Adapter(rank=4))]
)
def test_the_engine_says_the_same_alone_and_among_others(fusion: Any, some_kernel: Kernel) -> None:
    model = joined(fusion)
    to_int8(model.language.model)
    images = [torch.randn(3, *model.vision.image_size) for _ in range(3)]
    prompts = [im.Prompt(f"<image>number {n}", (image,)) for n, image in enumerate(images)]
    together = im.Engine(model).generate(prompts, max_new_tokens=6)
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = im.Engine(model).generate([prompt], max_new_tokens=6)
        assert alone.completions[0].text == found.completions[0].text


# --- loading --------------------------------------------------------------------------------------


@needs_kernel
def test_auto_on_a_cpu_is_int8_for_a_vision_language_model() -> None:
    model = im.load("tiny", device="cpu")
    assert model.language.computes_in == "int8"
    assert im.load("tiny", device="cpu", dtype=None).language.computes_in == "float32"
    assert im.load("tiny", device="cpu", dtype="bfloat16").language.computes_in == "bfloat16"
    assert machine.probe().as_dict()["auto"]["dtype"] == "int8"
    assert f"int8 by: {kernel().name}" in str(machine.probe())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--data", ".", "--out", "run"),
        ("classify", "--labels", "cat,dog", str(EXAMPLES / "cat.jpg")),
    ],
)
def test_where_int8_is_nothing_is_one_line(command: tuple[str, ...], run: Any) -> None:
    code, _, said = run(*command, "--dtype", "int8")
    assert code == 2
    assert said.count("\n") == 1
    assert 'dtype is "int8"' in said


@pytest.mark.parametrize(
    "make",
    [
        lambda: im.compose("tiny-vit", "tiny-lm", im.Linear(), dtype="int8"),
        lambda: im.load("tiny-clip", dtype="int8"),
    ],
)
def test_parts_that_do_not_compute_in_it_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match='dtype is "int8", in which only the language model'):
        make()


def test_a_gpu_has_no_int8() -> None:
    with pytest.raises(ConfigError, match="int8 runs only on a CPU"):
        machine.int8_for("int8", torch.device("meta"))
