"""A run through a language model that is laid over devices: what it takes, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import isthmus as im
from isthmus.config.file import read_run
from isthmus.config.model import LanguageConfig, TrainConfig
from isthmus.errors import ConfigError
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.training.memory import Load
from isthmus.training.placed import beside_devices, by_device, cost, operations, parameters_of
from isthmus.training.run import build
from isthmus.training.smoke import smoke

GIANT = Path(__file__).parents[3] / "configs" / "frozen-giant.toml"

# config.json of zai-org/GLM-4.5, what sizes it
GLM = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_hidden_layers": 92,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
    "vocab_size": 151552,
    "tie_word_embeddings": False,
    "eos_token_id": [258],
}
# config.json of Qwen/Qwen3-235B-A22B
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "eos_token_id": 258,
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder


def planned(folder: Path, **options: Any) -> tuple[Any, LanguageConfig]:
    run = read_run(GIANT, [f"language.name=hf:{folder}", "vision.name=tiny-vit"])
    language = replace(run.model.language, **options)  # type: ignore[union-attr]
    run = replace(run, model=replace(run.model, language=language))
    return build(run, "cpu", weights=False), language


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("glm"), GLM)


def layer(width: int, heads: int, keys: int, head: int) -> int:
    """Weights of attention, and of the two norms around it."""
    return 2 * width * head * (heads + keys) + 2 * head + 2 * width


def test_parameters_are_those_of_the_class_and_of_the_model_card(glm: Path, tmp_path: Path) -> None:
    found = parameters_of(planned(glm)[0].language)
    attention = layer(5120, 96, 8, 128) + (96 + 2 * 8) * 128  # with biases of q, k, v
    expert, table = 3 * 5120 * 1536, 151552 * 5120
    rest = 92 * attention + 3 * 3 * 5120 * 12288 + 2 * table + 5120
    rest += 89 * (expert + 160 * 5120)  # the shared expert and the router
    assert found.total == rest + 89 * 160 * expert
    assert found.active == rest + 89 * 8 * expert
    assert 350e9 < found.total < 357e9  # "355 B", with the layer that predicts two tokens
    assert 31e9 < found.active < 34e9  # "32 B"

    found = parameters_of(planned(write(tmp_path / "qwen", QWEN))[0].language)
    attention, expert = layer(4096, 64, 4, 128), 3 * 4096 * 1536
    rest = 94 * (attention + 128 * 4096) + 2 * 151936 * 4096 + 4096
    assert (found.total, found.active) == (
        rest + 94 * 128 * expert,
        rest + 94 * 8 * expert,
    )
    assert (round(found.total / 1e9), round(found.active / 1e9)) == (235, 22)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "qwen")
    with torch.device("meta"):
        own = transformers.AutoModelForCausalLM.from_config(config)
    assert own.num_parameters() == found.total


def test_every_weight_lies_on_one_device_and_none_is_fuller_than_it_may_be(glm: Path) -> None:
    model, language = planned(glm)
    load = Load(rows=32, tokens=288, images=32, labelled=32 * 30)
    run = read_run(GIANT)
    devices = by_device(model, run.train, load, language)
    assert list(devices) == [str(n) for n in range(len(devices))]  # nothing beside the GPUs
    weights = {name: own["frozen weights"] for name, own in devices.items()}
    routers = 2 * 89 * 160 * 5120  # the class keeps them in float32
    assert sum(weights.values()) == 2 * parameters_of(model.language).total + routers
    assert max(weights.values()) <= 110 * 2**30
    trained = 4 * sum(p.numel() for p in model.trained_parameters().values())
    assert devices["0"]["AdamW's moments"] == 2 * trained
    assert all("AdamW's moments" not in own for name, own in devices.items() if name != "0")
    layers = sum(own.get("decoder layers' inputs", 0) for own in devices.values())
    assert layers == pytest.approx(2 * 5120 * 32 * 288 * (92 + 3), rel=0.01)

    small = {0: "80GiB", "cpu": "900GiB"}
    beside, few = by_device(model, run.train, load, replace(language, max_memory=small)), 80 * 2**30
    assert list(beside) == ["0", "cpu"]
    assert beside["0"]["frozen weights"] <= few
    assert sum(own["frozen weights"] for own in beside.values()) == sum(weights.values())
    assert beside_devices(beside) == beside["cpu"]["frozen weights"]
    assert beside["0"]["one layer of those beside it"] > 2 * 160 * 3 * 5120 * 1536
    with pytest.raises(ConfigError, match="gradient_checkpointing = true"):
        by_device(
            model,
            replace(run.train, gradient_checkpointing=False),
            load,
            replace(language, max_memory=small),
        )
    onto = {"lengths": {288: 256}, "learned": 256 * 30}
    one = cost(model, run.train, load, replace(language, max_memory=small), **onto)
    eight = cost(model, run.train, load, language, **onto)
    assert (one.gpus, one.operations) == (1, eight.operations)
    assert one.moved == 16 * beside["cpu"]["frozen weights"]  # 8 passes, forward and again
    assert eight.moved == 0
    assert eight.gpus == len(devices)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    model = tiny_language_model(family, width=128, layers=3, heads=4)
    model.set_experts_implementation("eager")
    language = LanguageModel(model, byte_tokenizer(), LanguageConfig(name="hf:object"))
    embeddings = torch.randn(2, 24, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeddings).logits.sum().backward()
    expected = operations(language, TrainConfig(), {24: 2}, learned=48)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)
    again = operations(language, TrainConfig(gradient_checkpointing=True), {24: 2}, learned=48)
    assert 1.4 < again / expected < 1.6


def data(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 90, 20)).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"number {number}"}))
    (folder / "llava-pretrain.jsonl").write_text("\n".join(lines))
    return folder


def test_the_dry_run_reads_no_weights(glm: Path, tmp_path: Path, run: Any) -> None:
    assert not list(glm.glob("*.safetensors"))
    options = [f"language.name=hf:{glm}", "vision.name=tiny-vit", "train.batch_size=8"]
    sets = [p for o in (*options, "train.micro_batch_size=4") for p in ("--set", o)]
    command = ("train", GIANT, "--data", data(tmp_path / "data"), "--dry-run", *sets)
    code, said, errors = run(*command)
    print(said)
    assert code == 0, errors
    assert "GPU 0" in said
    assert "GPU hours" in said
    assert "computed at 30% of 989 TFLOP/s" in said
    code, said, errors = run(*command, "--json")
    assert code == 0, errors
    told = json.loads(said)
    assert told["language_parameters"] > 350e9
    assert told["cache"] == 8 * 16 * 32 * 2  # every image, 16 patches of 32 values in half
    hours = told["step_operations"] / (told["peak"] * told["utilisation"]) / 3600
    assert told["gpu_hours"] == pytest.approx(hours * told["steps"] * len(told["devices"]))


def test_the_smoke_run_goes_through_a_mixture_of_experts() -> None:
    small, _ = smoke(read_run(GIANT))
    model = build(small, "cpu")
    assert type(model.language.model).__name__ == "Glm4MoeForCausalLM"  # type: ignore[union-attr]


def test_training_through_a_split_model_gives_the_same_strip(tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    tiny_language_model("glm4_moe").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    split = {
        **{f"model.{n}": "cpu" for n in ("embed_tokens", "layers.0", "layers.1", "norm")},
        "model.rotary_emb": "cpu",
        "model.layers.2": "disk",
        "model.layers.3": "disk",
        "lm_head": "cpu",
    }
    config = TrainConfig(steps=2, batch_size=4, warmup=0, precision="fp32", feature_cache=False)
    saved = {}
    for name, device_map in (("whole", None), ("split", split)):
        torch.manual_seed(0)
        offload = str(tmp_path / "offload") if device_map else None
        language = LanguageConfig(
            name=f"hf:{folder}", device_map=device_map, offload_folder=offload
        )
        model = im.compose("tiny-vit", language, im.MLP())
        records = smoke(read_run(GIANT))[1]
        own = replace(config, gradient_checkpointing=True)
        if device_map:
            with pytest.raises(ConfigError, match="gradient_checkpointing = true"):
                im.train(model, records, config, tmp_path / "refused", quiet=True)
        im.train(model, records, own, tmp_path / name, quiet=True)
        saved[name] = load_file(tmp_path / name / "model.safetensors")
    assert saved["whole"].keys() == saved["split"].keys()
    for key, tensor in saved["whole"].items():
        assert torch.equal(tensor, saved["split"][key]), key
