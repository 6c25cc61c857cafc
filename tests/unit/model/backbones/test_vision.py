from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import isthmus as im
from isthmus.config.model import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, MissingExtraError
from isthmus.model.backbones.feature_shape import FeatureShape
from isthmus.model.backbones.vision import load_vision

PIXELS = torch.randn(2, 3, 32, 32)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def noise(size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def transformers_tower(kind: str) -> Any:
    import transformers as t

    configs = {
        "clip": (t.CLIPVisionConfig, t.CLIPVisionModel, {}),
        "siglip": (t.SiglipVisionConfig, t.SiglipVisionModel, {}),
        "dinov2": (t.Dinov2Config, t.Dinov2Model, {}),
        "dinov2 with registers": (
            t.Dinov2WithRegistersConfig,
            t.Dinov2WithRegistersModel,
            {"num_register_tokens": 4},
        ),
        "vit": (t.ViTConfig, t.ViTModel, {}),
    }
    config, model, more = configs[kind]
    return model(config(**SIZES, **more)).eval()


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("clip", 1), ("siglip", 0), ("dinov2", 1), ("dinov2 with registers", 5), ("vit", 1)],
)
@pytest.mark.parametrize("layer", [-1, -2])
def test_transformers_towers(kind: str, prefix: int, layer: int) -> None:
    tower = transformers_tower(kind)
    encoder = load_vision(tower, feature_layer=layer)
    expected = tower(pixel_values=PIXELS, output_hidden_states=True).hidden_states[layer]
    assert torch.equal(encoder(PIXELS), expected[:, prefix:])
    assert encoder.shape == FeatureShape(32, 16, (4, 4))


def test_a_saved_folder_brings_its_own_preprocessing(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor

    transformers_tower("clip").save_pretrained(tmp_path)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(tmp_path)
    encoder = load_vision(f"hf:{tmp_path}")
    image = noise()
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(encoder.preprocess(image), expected)


def timm_vit() -> Any:
    return timm.create_model(
        "test_vit", pretrained=False, num_classes=0, img_size=32, patch_size=8
    ).eval()


def test_timm_transformers_with_and_without_their_class_token() -> None:
    model = timm_vit()
    whole = model.forward_features(PIXELS)
    assert torch.equal(load_vision(model)(PIXELS), whole[:, 1:])
    encoder = load_vision(model, keep_cls=True)
    assert torch.equal(encoder(PIXELS), whole)
    assert encoder.shape == FeatureShape(whole.shape[2], 17, None)


def convnet() -> Any:
    return timm.create_model("test_efficientnet", pretrained=False, num_classes=0).eval()


def test_a_convolutional_network_traced_and_eager_are_the_same() -> None:
    model = convnet()
    encoder = load_vision(model)
    size = encoder.image_size
    for count in (1, 3):  # the graph was traced at another batch size
        pixels = torch.randn(count, 3, *size)
        expected = model.forward_features(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.eager(pixels), expected, rtol=1e-4, atol=1e-4)
    rows, columns = encoder.shape.grid or (0, 0)
    assert rows * columns == encoder.shape.tokens


def test_a_convolutional_network_is_not_traced_where_it_is_told_so() -> None:
    encoder = load_vision(convnet())
    pixels = torch.randn(1, 3, *encoder.image_size)
    encoder.traces = False
    assert torch.equal(encoder(pixels), encoder.eager(pixels))
    assert not encoder._traced
    encoder.traces = True
    torch.testing.assert_close(encoder(pixels), encoder.eager(pixels), rtol=1e-4, atol=1e-4)
    assert len(encoder._traced) == 1


def test_timms_own_preprocessing() -> None:
    model = convnet()
    data = timm.data.resolve_model_data_config(model)
    image = noise()
    transform = timm.data.create_transform(**data, is_training=False)
    assert torch.equal(load_vision(model).preprocess(image), transform(image))


def test_open_clip_towers_stop_before_the_final_norm() -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    encoder = load_vision(model)
    captured: dict[str, Tensor] = {}
    model.visual.transformer.register_forward_hook(lambda m, a, out: captured.update(out=out))
    model.visual(PIXELS)
    torch.testing.assert_close(encoder(PIXELS), captured["out"][:, 1:])
    assert encoder.shape == FeatureShape(32, 16, (4, 4))


def test_pad_shows_the_whole_image_and_squash_fills_the_frame() -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    vit = {
        resize: load_vision(VisionConfig(name="tiny-vit", resize=resize))  # type: ignore[arg-type]
        for resize in ("pad", "squash")
    }
    mean, std = (torch.tensor(v)[:, None] for v in vit["pad"]._normalisation)
    padded = vit["pad"].preprocess(wide).flatten(1) * std + mean
    padded = padded.view(3, 32, 32)
    assert torch.allclose(padded[:, 0, 0], torch.ones(3), atol=1e-6)  # white above
    assert torch.allclose(padded[:, 16, 0], torch.tensor([1.0, 0, 0]), atol=1e-6)
    squashed = vit["squash"].preprocess(wide).flatten(1) * std + mean
    assert torch.allclose(squashed, torch.tensor([[1.0], [0], [0]]).expand(3, 1024), atol=1e-6)


def test_an_encoder_is_frozen_and_stays_in_evaluation_mode() -> None:
    encoder = load_vision("tiny-vit").train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(PIXELS.clone().requires_grad_()).requires_grad


def test_names_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match='unknown vision encoder "tim:vit"'):
        load_vision("tim:vit")
    with pytest.raises(CheckpointError, match='cannot load "hf:nobody/none"'):
        load_vision("hf:nobody/none")
    with pytest.raises(CheckpointError, match='cannot load "timm:no_such_model"'):
        load_vision("timm:no_such_model", pretrained=False)
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r'pip install "isthmus\[clip\]"'):
        load_vision("open_clip:ViT-B-32/openai")


def test_an_object_goes_through_a_checkpoint(tmp_path: Path) -> None:
    vit = timm_vit()
    model = im.compose(vit, "tiny-lm", im.Linear())
    again = im.load(im.save(model, tmp_path), vision=vit)
    pixels = torch.randn(1, 3, 32, 32)
    batch = model.prepare(["<image>a"], [[pixels[0]]])
    assert torch.equal(again(batch).logits, model(batch).logits)
