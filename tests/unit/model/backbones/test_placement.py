"""A language model laid over devices, memory and disk: the same numbers as on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import AutoModelForCausalLM

import isthmus as im
from isthmus.config.file import run_from_mapping
from isthmus.errors import CheckpointError, ConfigError
from isthmus.generation.llama_cpp import unfit
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.placement import held_tensors, meta_model, offloaded
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_config, tiny_language_model
from isthmus.model.vlm import VisionLanguageModel

LAYERS = 4
LATE_ON_DISK = {
    "model.embed_tokens": "cpu",
    **{f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(LAYERS)},
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
ENDS_ON_DISK = {
    **{name: "disk" if where == "cpu" else "cpu" for name, where in LATE_ON_DISK.items()},
    "model.rotary_emb": "cpu",
}
FAMILIES = ("llama", "qwen3_moe", "glm4_moe", "deepseek_v3")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("glm4_moe", tmp_path_factory.mktemp("moe"))


def write(family: str, folder: Path) -> Path:
    tiny_language_model(family).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def joined(folder: Path, device_map: Any = None, offload: Path | None = None) -> Any:
    torch.manual_seed(1)
    language = im.LanguageConfig(
        name=f"hf:{folder}",
        device_map=device_map,
        offload_folder=None if offload is None else str(offload),
    )
    return im.compose("tiny-vit", language, im.MLP(), im.Inline(), device="auto")


def batch(model: VisionLanguageModel) -> im.Batch:
    made = model.prepare(["<image> a red square", "no <image>"], [[image(0)], [image(1)]])
    labels = made.input_ids.masked_fill(made.input_ids == model.special_tokens.image_id, -100)
    labels = labels.masked_fill(made.attention_mask == 0, -100)
    return im.Batch(
        input_ids=made.input_ids,
        attention_mask=made.attention_mask,
        pixels=made.pixels,
        labels=labels,
    )


def image(seed: int) -> Tensor:
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed))


def logits_and_gradients(model: VisionLanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    out = model(batch(model))
    assert out.loss is not None
    out.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == set(model.trained_parameters())  # none for what is frozen
    return out.logits.detach(), grads


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device_map", [LATE_ON_DISK, ENDS_ON_DISK], ids=["late", "ends"])
def test_logits_and_gradients_are_those_of_one_device(
    folder: Path, device_map: dict[str, str], checkpointing: bool, tmp_path: Path
) -> None:
    whole = joined(folder)
    split = joined(folder, device_map, tmp_path / "offloaded")
    assert split.language.placed
    assert offloaded(split.language.model)
    before, expected = logits_and_gradients(whole)
    if checkpointing:
        split.language.checkpoint_activations()
    after, got = logits_and_gradients(split)
    assert torch.equal(before, after)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0 or name == "special_tokens.input_rows"
        assert torch.equal(gradient, got[name]), name


def test_weights_leave_the_device_again_after_a_step(moe: Path, tmp_path: Path) -> None:
    model = joined(moe, LATE_ON_DISK, tmp_path)
    away = [p for module in offloaded(model.language.model) for p in module.parameters(False)]
    assert away
    model.language.checkpoint_activations()
    logits_and_gradients(model)
    held = [m for m in offloaded(model.language.model) if any(not p.is_meta for p in own(m))]
    assert not held
    assert len(offloaded(model.language.model)) > 0


def own(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return list(module.parameters(recurse=False))


def test_auto_on_this_machine_and_one_device_of_a_name(moe: Path) -> None:
    expected, _ = logits_and_gradients(joined(moe))
    for device_map in ("auto", "cpu", {"": "cpu"}):
        got, _ = logits_and_gradients(joined(moe, device_map))
        assert torch.allclose(expected, got.cpu(), atol=1e-6)


def test_one_that_was_dispatched_before_is_not_turned_to_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_language_model("llama", layers=LAYERS, width=256).save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    monkeypatch.setattr("isthmus.model.saved_parts.int8_for", lambda *_: True)
    model = joined(tmp_path / "lm")
    folder = im.save(model, tmp_path / "strip")
    expected, _ = logits_and_gradients(model)
    language = AutoModelForCausalLM.from_pretrained(
        tmp_path / "lm", device_map=LATE_ON_DISK, offload_folder=tmp_path / "offloaded"
    )
    parts: dict[str, Any] = {"language": language, "tokenizer": byte_tokenizer()}
    loaded: Any = im.load(folder, **parts)
    assert loaded.language.computes_in == "float32"
    got, _ = logits_and_gradients(loaded)
    assert torch.equal(got, expected)
    with pytest.raises(ConfigError, match="int8"):
        im.load(folder, dtype="int8", **parts)
    assert "laid over devices" in unfit(loaded)


def test_it_answers_saves_and_loads(moe: Path, tmp_path: Path) -> None:
    split = joined(moe, LATE_ON_DISK, tmp_path / "offloaded")
    whole = joined(moe)
    assert fingerprint(split.language.model) == fingerprint(whole.language.model)
    asked = [m.prepare(["<image> what?"], [[image(0)]]) for m in (split, whole)]
    first = im.generate(split, asked[0], max_new_tokens=4)
    assert torch.equal(first, im.generate(whole, asked[1], max_new_tokens=4))
    saved = im.save(split, tmp_path / "saved")
    assert "offloaded" not in (saved / "isthmus.json").read_text(encoding="utf-8")
    again = im.load(saved, device="cpu", dtype=None)
    assert not again.language.placed
    spread = {**LATE_ON_DISK, "model.layers.3": "cpu", "model.layers.2": "cpu", "lm_head": "cpu"}
    loaded = im.load(saved, device_map=spread, dtype=None)
    assert loaded.language.placed
    for model in (again, loaded):
        assert torch.equal(model(batch(model)).logits, whole(batch(whole)).logits)


def test_every_weight_can_be_read_wherever_it_lies(moe: Path, tmp_path: Path) -> None:
    split = joined(moe, ENDS_ON_DISK, tmp_path).language.model
    whole = joined(moe).language.model.state_dict()
    held = held_tensors(split)
    assert held.keys() == whole.keys()
    assert all(torch.equal(held[name](), tensor) for name, tensor in whole.items())
    with pytest.raises(ConfigError, match="has no weights"):
        held_tensors(meta_model(f"hf:{moe}"))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
def test_each_tensor_is_where_it_is_needed_on_three_gpus() -> None:
    """PyTorch's fake tensors know their device and refuse to meet others, without any GPU."""
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    places |= {"model.layers.1": 1, "model.layers.2": 1, "model.layers.3": 1}
    places |= {"model.norm": 1, "lm_head": 2}
    with FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True)):
        model = AutoModelForCausalLM.from_config(tiny_language_config("llama"))
        for name, place in places.items():
            for module in model.get_submodule(name).modules():
                for own in (module._parameters, module._buffers):
                    for key in [k for k, value in own.items() if value is not None]:
                        moved = torch.empty(own[key].shape, device=f"cuda:{place}")
                        parameter = own is module._parameters
                        own[key] = nn.Parameter(moved, False) if parameter else moved
        model = dispatch_model(model, places)
        language = LanguageModel(model, byte_tokenizer(), im.LanguageConfig(name="hf:object"))
        assert language.device == torch.device("cuda:0")
        tokens = AddedTokens(language)
        assert tokens.output_rows.device == torch.device("cuda:0")
        given = torch.ones(2, 7, dtype=torch.long, device="cuda:0")
        for chosen in (None, given > 0):
            with tokens.used(given[:, 0] > 0, chosen), torch.no_grad():
                logits = model(
                    inputs_embeds=torch.zeros(2, 7, 64, device="cuda:0"),
                    attention_mask=given,
                    position_ids=given.cumsum(-1) - 1,
                    use_cache=False,
                ).logits
            assert logits.device == torch.device("cuda:0")
            assert logits.shape[-1] == language.vocab_rows + 2


def test_moving_leaves_it_where_it_is(moe: Path, tmp_path: Path) -> None:
    model = joined(moe, LATE_ON_DISK, tmp_path).to("cpu", torch.float64)
    assert model.connector.num_tokens
    assert next(model.connector.parameters()).dtype == torch.float64
    assert model.language.input_embedding.weight.dtype == torch.float32
    assert offloaded(model.language.model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device_map": "everywhere"}, "device_map = 'everywhere': Choices"),
        ({"device_map": {"lm_head": -1}}, "device_map"),
        ({"device_map": 1.5}, "expected one of auto"),
        ({"device_map": "auto", "max_memory": {"0": "lots"}}, "120GiB"),
        ({"max_memory": {"0": "1GiB"}}, "expected language.device_map"),
        ({"device_map": "auto", "lora_rank": 2}, "leave one of them out"),
    ],
)
def test_what_is_no_placement(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        im.LanguageConfig(name="tiny-lm", **given)


@pytest.mark.parametrize("device_map", ["disk", "xpu:7", {"model": "cpu", "lm_head": "disk"}])
def test_devices_that_a_made_up_model_cannot_be_put_on(device_map: Any) -> None:
    language = im.LanguageConfig(name="tiny-lm", device_map=device_map)
    with pytest.raises(ConfigError, match=r"device_map = .*offload_folder"):
        im.compose("tiny-vit", language, im.MLP(), im.Inline())


def test_numbers_of_devices_are_numbers_however_they_are_written() -> None:
    run = run_from_mapping(
        {
            "vision": {"name": "tiny-vit"},
            "language": {"name": "tiny-lm", "device_map": {"model": "0", "lm_head": "cuda:1"}},
            "connector": {"type": "mlp"},
        },
        ['language.max_memory={"0"="2GiB", cpu="1GiB"}'],
    )
    assert run.model.language.device_map == {"model": 0, "lm_head": "cuda:1"}  # type: ignore[union-attr]
    assert run.model.language.max_memory == {0: "2GiB", "cpu": "1GiB"}  # type: ignore[union-attr]


def test_maps_that_do_not_fit(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no device for "model.layers.3'):
        joined(moe, {k: v for k, v in LATE_ON_DISK.items() if k != "model.layers.3"})
    with pytest.raises(ConfigError, match=r'"model.blocks.3".*has no such module'):
        joined(moe, {**LATE_ON_DISK, "model.blocks.3": "cpu"})
    with pytest.raises(ConfigError, match="loaded already"):
        im.compose("tiny-vit", tiny_language_model(), im.MLP(), device_map="auto")
    with pytest.raises(CheckpointError, match="offload"):  # experts are fused as they are read
        joined(moe, LATE_ON_DISK)
