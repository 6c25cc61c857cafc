"""Towers of released families give what Transformers' own classes give, alone and by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import isthmus as im
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.native import native_pixels, patches_of
from isthmus.model.backbones.tower_alone import tower_type
from isthmus.model.backbones.vision import load_vision

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA4 = {
    **SIZES,
    "intermediate_size": 128,
    "pixel_shuffle_ratio": 0.5,
    **dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 48),
}
OVIS = {**SIZES, "vocab_size": 16, "hidden_stride": 2}
KIMI = {
    **{k: v for k, v in SIZES.items() if k != "image_size"},
    "pos_emb_height": 8,
    "pos_emb_width": 8,
}
GLM = {
    **{"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 48},
    **{"intermediate_size": 64, "image_size": 32, "patch_size": 8},
}
INTERN = {**SIZES, "image_size": [32, 32], "patch_size": [8, 8], "use_mean_pooling": False}
DINO = {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "image_size": 64}


def tower(family: str, name: str, sizes: dict[str, Any]) -> Any:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    made = getattr(module, name)
    return randomised(made(made.config_class(**sizes)))


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def noise(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def photograph(width: int, height: int) -> Image.Image:
    made = torch.rand(10, 18, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    return Image.fromarray(made.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("family", "name", "sizes"),
    [
        ("internvl", "InternVLVisionModel", INTERN),
        ("aimv2", "Aimv2VisionModel", SIZES),
        ("dinov3_vit", "DINOv3ViTModel", {**SIZES, "num_register_tokens": 4}),
        ("dinov3_convnext", "DINOv3ConvNextModel", DINO),
        ("idefics3", "Idefics3VisionTransformer", SIZES),
        ("smolvlm", "SmolVLMVisionTransformer", SIZES),
        ("siglip", "SiglipVisionModel", SIZES),
    ],
)
@torch.no_grad()
def test_layers_are_the_class_s_own(family: str, name: str, sizes: dict[str, Any]) -> None:
    model = tower(family, name, sizes)
    pixels = noise(64, 64) if family == "dinov3_convnext" else noise(32, 32)
    theirs = model(pixel_values=pixels, output_hidden_states=True)
    normed = load_vision(model, final_norm=True)
    patches = normed.shape.tokens
    assert torch.equal(normed(pixels), theirs.last_hidden_state[:, -patches:])
    before = load_vision(model, feature_layer=-2)(pixels)
    states = theirs.hidden_states[-2]
    flat = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    assert torch.equal(before, flat[:, -before.shape[1] :])
    assert not torch.equal(load_vision(model)(pixels), normed(pixels))


@torch.no_grad()
def test_llama_4_without_its_adapter() -> None:
    model = tower("llama4", "Llama4VisionModel", LLAMA4)
    pixels = noise(32, 32)
    theirs = model(pixel_values=pixels, output_hidden_states=True)
    normed = load_vision(model, final_norm=True)
    assert torch.equal(model.vision_adapter(normed(pixels)), theirs.last_hidden_state)
    last = load_vision(model)(pixels)
    assert torch.equal(model.layernorm_post(last), normed(pixels))
    kept = load_vision(model, keep_cls=True)(pixels)  # the class token, in front as elsewhere
    assert torch.equal(kept[:, 1:], last)
    assert kept.shape[1] == 17
    with pytest.raises(ConfigError, match="layers -1"):
        load_vision(model, feature_layer=-4)


@torch.no_grad()
def test_ovis_2_without_its_words() -> None:
    model = tower("ovis2", "Ovis2VisionModel", OVIS)
    pixels = noise(32, 32)
    own = load_vision(model, final_norm=True)(pixels)
    assert torch.equal(own, model.transformer(pixels).last_hidden_state)
    assert torch.equal(model.transformer.rms_norm(load_vision(model)(pixels)), own)
    assert not torch.equal(load_vision(model, feature_layer=-2)(pixels), load_vision(model)(pixels))


@torch.no_grad()
def test_pixtral_keeps_images_of_a_batch_apart() -> None:
    model = tower("pixtral", "PixtralVisionModel", {**SIZES, "head_dim": 16})
    encoder = load_vision(model)
    pixels = noise(24, 40)
    both = encoder(pixels)
    assert both.shape == (2, 15, 32)
    for own, one in zip(both, pixels, strict=True):
        theirs = model(one[None], image_sizes=[(24, 40)]).last_hidden_state[0]
        assert torch.allclose(own, theirs, atol=1e-5)


@torch.no_grad()
def test_kimi_s_squares_are_those_that_it_merges() -> None:
    model = tower("kimi_k25", "Kimi_K25VisionModel", KIMI)
    processor = transformers.Kimi_K25ImageProcessor(patch_size=8)
    image = photograph(60, 41)
    made = processor(images=image, return_tensors="pt")
    theirs = model(made["pixel_values"], grid_thw=made["image_grid_thw"])
    pixels = native_pixels(processor, image)
    encoder = load_vision(model, preprocess=processor)
    assert torch.equal(encoder.preprocess(image), pixels)
    assert tuple(pixels.shape[1:]) == (48, 64)
    own = encoder(pixels[None])
    assert torch.allclose(own.reshape(-1, 4, 32), theirs.pooler_output, atol=1e-5)
    both = encoder(torch.stack([pixels, pixels.flip(2)]))
    assert torch.allclose(both[:1], own, atol=1e-5)
    small = native_pixels(processor, photograph(300, 200), max_pixels=64 * 64)
    assert small[0].numel() <= 1.5 * 64 * 64
    with pytest.raises(ConfigError, match="never enlarges"):
        native_pixels(processor, image, min_pixels=100)


@torch.no_grad()
def test_glm_4v_before_it_merges() -> None:
    model = tower("glm4v", "Glm4vVisionModel", GLM)
    limits = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    processor = transformers.Glm4vImageProcessor(patch_size=8, size=limits)
    image = photograph(60, 41)
    made = processor(images=image, return_tensors="pt")
    theirs = model(made["pixel_values"], grid_thw=made["image_grid_thw"])
    encoder = load_vision(model, preprocess=processor)
    own = encoder(encoder.preprocess(image)[None])
    squares = own.reshape(-1, 2, 2, 32).permute(0, 3, 1, 2)
    merged = model.merger(model.downsample(squares).flatten(1))
    assert torch.allclose(merged, theirs.pooler_output, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_vl_moe", "Qwen3VLMoeVisionModel"),
        ("qwen3_5", "Qwen3_5VisionModel"),
        ("qwen3_5_moe", "Qwen3_5MoeVisionModel"),
        ("glm4v_moe", "Glm4vMoeVisionModel"),
    ],
)
@torch.no_grad()
def test_what_a_tower_merges_is_what_we_give(family: str, name: str) -> None:
    sizes = {k: v for k, v in GLM.items() if k != "image_size" or family == "glm4v_moe"}
    indexes = {} if family == "glm4v_moe" else {"deepstack_visual_indexes": [0]}
    model = tower(family, name, {**sizes, **indexes})
    encoder = load_vision(model)
    native, pixels = encoder.shape.native, noise(48, 64)
    assert native is not None
    own = encoder(pixels)
    theirs = model(patches_of(pixels, native, 2), grid_thw=torch.tensor([[1, 6, 8]] * 2))
    if family == "glm4v_moe":
        squares = own.reshape(-1, 2, 2, 32).permute(0, 3, 1, 2)
        merged = model.merger(model.downsample(squares).flatten(1))
    else:
        merged = model.merger(own.reshape(-1, 32))
    assert torch.allclose(merged, theirs.pooler_output, atol=1e-4)


# --- By the name of a whole model ----------------------------------------------------------------

TEXT = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}
DEEPSEEK = {
    **{**TEXT, "num_key_value_heads": 2, "model_type": "deepseek_v3", "n_routed_experts": 4},
    **{"moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 16, "first_k_dense_replace": 1},
}


def mistral3() -> tuple[Any, Any]:
    vision = {"model_type": "pixtral", **SIZES, "head_dim": 16}
    text = {"model_type": "mistral", **TEXT, "head_dim": 16}
    config = transformers.Mistral3Config(vision_config=vision, text_config=text)
    return config, transformers.PixtralImageProcessor(patch_size=8, size={"longest_edge": 64})


def llama4() -> tuple[Any, Any]:
    text = {**TEXT, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64}
    config = transformers.Llama4Config(vision_config=LLAMA4, text_config=text)
    return config, transformers.Llama4ImageProcessor(size={"height": 32, "width": 32})


def ovis2() -> tuple[Any, Any]:
    vision = {**OVIS, "num_visual_indicator_tokens": 5}
    text = {"model_type": "qwen2", **TEXT}
    config = transformers.Ovis2Config(vision_config=vision, text_config=text, hidden_size=32)
    return config, transformers.Ovis2ImageProcessor(size={"height": 32, "width": 32})


def glm4v() -> tuple[Any, Any]:
    rope = {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [2, 1, 1]}
    text = {**TEXT, "rope_parameters": {**rope, "partial_rotary_factor": 0.5}}
    config = transformers.Glm4vConfig(
        vision_config={**GLM, "out_hidden_size": 32}, text_config=text
    )
    limits = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    return config, transformers.Glm4vImageProcessor(patch_size=8, size=limits)


def kimi() -> tuple[Any, Any]:
    config = transformers.Kimi_K25Config(
        vision_config=KIMI, text_config=DEEPSEEK, projection_hidden_size=32
    )
    return config, transformers.Kimi_K25ImageProcessor(patch_size=8)


WHOLE: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "mistral3": (mistral3, "model.vision_tower"),
    "llama4": (llama4, "vision_model"),
    "ovis2": (ovis2, "model.vision_tower"),
    "glm4v": (glm4v, "model.visual"),
    "kimi": (kimi, "model.vision_tower"),
}


@pytest.mark.parametrize("family", WHOLE)
@torch.no_grad()
def test_the_tower_alone_is_the_whole_model_s(family: str, tmp_path: Path) -> None:
    make, path = WHOLE[family]
    config, processor = make()
    whole = randomised(transformers.AutoModelForImageTextToText.from_config(config))
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    needed = {f for key, f in files.items() if "vis" in key}
    spared = [f for f in tmp_path.glob("*.safetensors") if f.name not in needed]
    assert spared
    for file in spared:  # none but the tower's are opened
        file.unlink()
    name = f"hf:{tmp_path}"
    encoder = load_vision(name)
    image = photograph(60, 41)
    pixels = encoder.preprocess(image)[None]
    theirs = load_vision(whole.get_submodule(path), preprocess=processor)
    assert torch.equal(encoder(pixels), theirs(pixels))
    assert all(not t.is_meta for t in encoder.state_dict().values())
    native = encoder.shape.native
    merged = native is not None and native.merge > 1
    model = im.compose(name, "tiny-lm", im.Merger() if merged else im.MLP())
    batch = model.prepare(["<image> what?"], [[image]])
    assert model(batch).logits.isfinite().any()
    for file in needed:
        (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match="cannot load"):
        load_vision(name)


@torch.no_grad()
def test_llama_4_shows_the_whole_image_and_no_crop(tmp_path: Path) -> None:
    config, processor = llama4()
    randomised(transformers.AutoModelForImageTextToText.from_config(config)).save_pretrained(
        tmp_path
    )
    processor.save_pretrained(tmp_path)
    wide = Image.new("RGB", (256, 32))
    wide.paste((255, 255, 255), (128, 0, 256, 32))
    pixels = load_vision(f"hf:{tmp_path}").preprocess(wide)
    assert tuple(pixels.shape) == (3, 32, 32)
    assert pixels.max() - pixels.min() > 1  # both halves are seen


def test_what_is_no_tower_that_is_known(tmp_path: Path) -> None:
    told = {"model_type": "kimi_vl", "auto_map": {"AutoModel": "modeling_kimi_vl.KimiVL"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="hf\\+code:") as caught:
        load_vision(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)
    assert tower_type("tiny-vit") is None
