"""Every library's models give what the library itself gives: features, preprocessing, layers."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from isthmus.assets import registry as assets
from isthmus.config.model import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, MissingExtraError
from isthmus.model.backbones.tiny import tiny_vit_model
from isthmus.model.backbones.tracing import frozen_graph
from isthmus.model.backbones.vision import VisionEncoder, load_vision

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
REGISTERS = 4


def randomised(model: Any) -> Any:
    """With every parameter random: norms that are one and biases that are zero hide mistakes."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def clip() -> Any:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 99}
    settings = transformers.CLIPConfig(vision_config=SMALL, text_config=text)
    return randomised(transformers.CLIPModel(settings))


# name -> (model, tokens in front of the patches)
TRANSFORMERS: dict[str, tuple[Any, int]] = {
    "clip": (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL)), 1),
    "siglip": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL)), 0),
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)), 1),
    "dinov2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)), 1),
    "dinov2_with_registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=REGISTERS)
        ),
        1 + REGISTERS,
    ),
}


def pixels_for(encoder: VisionEncoder, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *encoder.image_size)


def photograph(width: int = 90, height: int = 50) -> Image.Image:
    """Neither square nor of any encoder's size."""
    noise = Image.frombytes("RGB", (18, 10), random.Random(0).randbytes(540))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


# --- Transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("layer", [-1, -2, -4, 1])
def test_transformers_features_are_its_hidden_states(family: str, layer: int) -> None:
    make, prefix = TRANSFORMERS[family]
    model = randomised(make())
    encoder = load_vision(model, feature_layer=layer)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    assert expected.shape[1] == prefix + 16
    assert torch.equal(encoder(pixels), expected[:, prefix:])
    assert encoder.shape.grid == (4, 4)
    assert (encoder.shape.width, encoder.shape.tokens) == (32, 16)
    kept = load_vision(model, feature_layer=layer, keep_cls=True)
    assert torch.equal(kept(pixels), expected)
    assert kept.shape.tokens == prefix + 16
    assert kept.shape.grid == (None if prefix else (4, 4))


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_behind_the_final_norm_are_last_hidden_states(family: str) -> None:
    make, prefix = TRANSFORMERS[family]
    model = randomised(make())
    encoder = load_vision(model, final_norm=True)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state
    assert torch.equal(encoder(pixels), expected[:, prefix:])


def test_no_final_norm_behind_an_inner_layer() -> None:
    with pytest.raises(
        ConfigError, match=r"final_norm = true with feature_layer = -2: expected -1"
    ):
        load_vision("tiny-vit", feature_layer=-2, final_norm=True)


def test_a_dual_encoder_gives_its_vision_tower() -> None:
    model = clip()
    encoder = load_vision(model)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        tower = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    assert torch.equal(encoder(pixels), tower.hidden_states[-1][:, 1:])
    assert not any("text" in name for name, _ in encoder.named_parameters())


def test_the_last_layer_of_siglip_is_before_its_final_norm() -> None:
    model = randomised(TRANSFORMERS["siglip"][0]())
    encoder = load_vision(model)
    pixels = pixels_for(encoder)
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        normed = tower.post_layernorm(encoder(pixels))
        torch.testing.assert_close(normed, model(pixel_values=pixels).last_hidden_state)


def test_a_transformers_convolutional_network_gives_its_map_row_by_row() -> None:
    settings = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = transformers.ResNetModel(settings).eval()
    encoder = load_vision(model)
    assert encoder.shape.grid == (28, 28)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state
    assert torch.equal(encoder(pixels)[:, 28 * 3 + 5], expected[:, :, 3, 5])


def saved(model: Any, processor: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PROCESSORS: dict[str, Any] = {
    "clip": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=square(32)
    ),
    "siglip": lambda: transformers.SiglipImageProcessor(size=square(32)),
    "vit": lambda: transformers.ViTImageProcessor(size=square(32)),
    "dinov2": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size=square(32), image_mean=[0.485, 0.456, 0.406]
    ),
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_folder_is_loaded_with_its_own_preprocessing(family: str, tmp_path: Path) -> None:
    model, processor = randomised(TRANSFORMERS[family][0]()), PROCESSORS[family]()
    encoder = load_vision(saved(model, processor, tmp_path))
    image = photograph()
    expected = transformers.AutoImageProcessor.from_pretrained(tmp_path)(
        images=image, return_tensors="pt"
    )["pixel_values"]
    assert torch.equal(encoder.preprocess(image), expected[0])
    pixels = pixels_for(encoder)
    assert torch.equal(encoder(pixels), load_vision(model)(pixels))
    assert encoder.config == VisionConfig(name=f"hf:{tmp_path}")


def test_the_size_is_what_the_processor_makes_and_not_what_the_model_was_trained_at(
    tmp_path: Path,
) -> None:
    """DINOv2 says 518 in its configuration, and its processor makes 224."""
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 16, "width": 24}
    )
    model = randomised(TRANSFORMERS["dinov2_with_registers"][0]())
    encoder = load_vision(saved(model, processor, tmp_path))
    assert encoder.image_size == (16, 24)
    assert encoder.shape.grid == (2, 3)
    features = encoder(encoder.preprocess(photograph())[None])
    assert features.shape == (1, encoder.shape.tokens, encoder.shape.width)


def test_an_object_brings_an_image_processor() -> None:
    processor = PROCESSORS["clip"]()
    encoder = load_vision(clip(), preprocess=processor, resize="squash")
    image = Image.new("RGB", (9, 5), (255, 0, 0))
    mean, std = (torch.tensor(v) for v in (processor.image_mean, processor.image_std))
    expected = ((torch.tensor([1.0, 0.0, 0.0]) - mean) / std)[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(encoder.preprocess(image), expected)


def test_a_processor_that_does_not_normalise_is_believed() -> None:
    processor = transformers.ViTImageProcessor(size=square(32), do_normalize=False)
    encoder = load_vision(TRANSFORMERS["vit"][0](), preprocess=processor, resize="squash")
    assert torch.equal(
        encoder.preprocess(Image.new("RGB", (9, 5), (255, 0, 0)))[:, 0, 0],
        torch.tensor([1.0, 0.0, 0.0]),
    )


@pytest.mark.parametrize("resize", ["own", "pad", "squash"])
def test_an_object_without_its_preprocessing_is_told_so(resize: Any) -> None:
    encoder = load_vision(clip(), resize=resize)
    with pytest.raises(ConfigError, match="preprocess="):
        encoder.preprocess(photograph())


def test_pixels_of_a_size_that_depends_on_the_image_are_refused() -> None:
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    model = TRANSFORMERS["dinov2"][0]()
    with pytest.raises(ConfigError, match='resize="squash"'):
        load_vision(model, preprocess=processor).preprocess(photograph())
    fitted = load_vision(model, preprocess=processor, resize="pad").preprocess(photograph())
    assert fitted.shape == (3, 32, 32)


# --- timm ----------------------------------------------------------------------------------------


def timm_model(name: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0).eval()


def test_timm_vit_is_forward_features_without_the_class_token() -> None:
    model = randomised(tiny_vit_model(depth=3))
    encoder = load_vision(model)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model.forward_features(pixels)
    assert torch.equal(encoder(pixels), expected[:, 1:])
    assert torch.equal(load_vision(model, keep_cls=True)(pixels), expected)


@pytest.mark.parametrize("layer", [-2, -3])
def test_timm_vit_earlier_layers_are_its_blocks_outputs(layer: int) -> None:
    model = randomised(tiny_vit_model(depth=3))
    seen: list[Tensor] = []
    encoder = load_vision(model, feature_layer=layer, keep_cls=True)
    pixels = pixels_for(encoder)
    handle = model.blocks[layer].register_forward_hook(lambda *args: seen.append(args[2]))
    features = encoder(pixels)
    handle.remove()
    assert torch.equal(features, seen[0])


def test_timm_prefix_tokens_are_as_many_as_the_model_says() -> None:
    registers = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, reg_tokens=3
    )
    none = timm.models.VisionTransformer(
        img_size=(16, 32),
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
    )
    for model, prefix, grid in ((registers, 4, (4, 4)), (none, 0, (2, 4))):
        for layer in (-1, -2):
            encoder = load_vision(randomised(model), feature_layer=layer)
            assert encoder.shape.grid == grid
            pixels = pixels_for(encoder)
            kept = load_vision(model, feature_layer=layer, keep_cls=True)(pixels)
            assert torch.equal(encoder(pixels), kept[:, prefix:])
            assert kept.shape[1] == prefix + grid[0] * grid[1]


# Convolutions; attention with channels last (Swin); attention between convolutions (MaxViT)
MAPS = {"test_efficientnet": (5, 5), "resnet10t": (6, 6), "test_convnext": (5, 5)}


@pytest.mark.parametrize("name", MAPS)
def test_timm_feature_maps_become_tokens_row_by_row(name: str) -> None:
    model = timm_model(name)
    encoder = load_vision(model)
    assert encoder.shape.grid == MAPS[name]
    pixels = pixels_for(encoder, 3)  # not the two images that the graph was traced with
    with torch.no_grad():
        expected = model.forward_features(pixels)
    features = encoder(pixels)
    assert features.shape == (3, *expected.flatten(2).transpose(1, 2).shape[1:])
    torch.testing.assert_close(features[:, 1], expected[:, :, 0, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.eager(pixels), features, atol=1e-4, rtol=1e-4)


def test_timm_earlier_stages_of_a_convolutional_network() -> None:
    model = timm_model("test_efficientnet")
    encoder = load_vision(model, feature_layer=-2)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model.forward_intermediates(pixels, intermediates_only=True)[-2]
    assert encoder.shape.grid == expected.shape[2:] == (10, 10)
    torch.testing.assert_close(
        encoder(pixels), expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("layer", [-1, -2])
def test_timm_windowed_attention_has_channels_last(layer: int) -> None:
    model = timm.models.SwinTransformer(
        img_size=64, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=0
    ).eval()
    encoder = load_vision(model, feature_layer=layer)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        last = model.forward_features(pixels)  # (B, h, w, D)
        earlier = model.forward_intermediates(pixels, intermediates_only=True)[-2]  # (B, D, h, w)
    expected = last.flatten(1, 2) if layer == -1 else earlier.flatten(2).transpose(1, 2)
    assert torch.equal(encoder(pixels), expected)
    assert encoder.shape.width == (32 if layer == -1 else 16)


def test_timm_class_attention_has_no_class_token_before_its_end() -> None:
    model = timm.models.Cait(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        earlier = model.forward_intermediates(pixels, intermediates_only=True)[-2]
        last = model.forward_features(pixels)
    encoder = load_vision(model, feature_layer=-2)
    assert torch.equal(encoder(pixels), earlier.flatten(2).transpose(1, 2))
    assert torch.equal(load_vision(model)(pixels), last[:, 1:])


@pytest.mark.parametrize("resize", ["own", "squash"])
def test_timm_preprocessing_is_its_own(resize: Any) -> None:
    model = timm_model("test_efficientnet")
    encoder = load_vision(model, resize=resize)
    image = photograph()
    data = timm.data.resolve_model_data_config(model)
    if resize == "squash":
        data |= {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
    expected = timm.data.create_transform(**data, is_training=False)(image)
    torch.testing.assert_close(encoder.preprocess(image), expected)


# --- open_clip -----------------------------------------------------------------------------------


def open_clip_model(**vision: Any) -> Any:
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    settings = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32}
    return randomised(
        open_clip.model.CLIP(
            embed_dim=16, vision_cfg=settings | vision, text_cfg=text, quick_gelu=True
        )
    )


def test_open_clip_features_are_blocks_outputs_without_the_final_norm() -> None:
    model = open_clip_model()
    encoder = load_vision(model)
    pixels = pixels_for(encoder)
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(model.visual.transformer.resblocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out}))
    model.visual.output_tokens = True
    with torch.no_grad():
        _, tokens = model.visual(pixels)  # what open_clip itself gives, with the final norm
    torch.testing.assert_close(model.visual.ln_post(encoder(pixels)), tokens)
    torch.testing.assert_close(load_vision(model, final_norm=True)(pixels), tokens)
    for layer in (-1, -2, -3):
        states = load_vision(model, feature_layer=layer, keep_cls=True)(pixels)
        assert torch.equal(states, seen[3 + layer])
        patches = load_vision(model.visual, feature_layer=layer)(pixels)
        assert torch.equal(patches, states[:, 1:])
    assert encoder.shape.grid == (4, 4)


def test_open_clip_preprocessing_is_its_own() -> None:
    model = open_clip_model()
    expected = open_clip.image_transform(32, is_train=False)(photograph())
    assert torch.equal(load_vision(model).preprocess(photograph()), expected)
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash", "size": (32, 32)}
    open_clip.model.set_model_preprocess_cfg(model, settings)
    expected = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**settings), is_train=False
    )(photograph())
    assert torch.equal(load_vision(model).preprocess(photograph()), expected)


def test_an_open_clip_tower_from_timm_follows_timm() -> None:
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "image_size": 160}
    vision |= {"timm_pool": "", "timm_proj": "linear"}
    model = randomised(open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))
    encoder = load_vision(model)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model.visual.trunk.forward_features(pixels)
    assert torch.equal(encoder(pixels), expected[:, 1:])


def test_an_open_clip_name_gets_the_activation_that_its_weights_were_trained_with() -> None:
    """open_clip only warns that GELU was taken where OpenAI's weights need QuickGELU."""
    encoder = load_vision("open_clip:ViT-B-32/openai", pretrained=False)
    assert any(isinstance(m, open_clip.transformer.QuickGELU) for m in encoder.modules())
    encoder = load_vision("open_clip:ViT-B-32/laion2b_s34b_b79k", pretrained=False)
    assert not any(isinstance(m, open_clip.transformer.QuickGELU) for m in encoder.modules())


def test_open_clip_weights_are_never_random_unasked() -> None:
    with pytest.raises(CheckpointError, match=r'no weights "" of ViT-B-32, but: .*openai'):
        load_vision("open_clip:ViT-B-32")
    with pytest.raises(CheckpointError, match='"laion" of ViT-B-32'):
        load_vision("open_clip:ViT-B-32/laion")
    with pytest.raises(CheckpointError, match="did you mean ViT-B-32"):
        load_vision("open_clip:ViT-B32/openai")


def test_an_open_clip_tower_without_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match="no patch tokens"):
        load_vision(open_clip_model(layers=(1, 1, 1, 1)))


def test_open_clip_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "isthmus[clip]"')):
        load_vision("open_clip:ViT-B-32/openai")


# --- Every encoder -------------------------------------------------------------------------------

ENCODERS: dict[str, Any] = {
    "transformers": clip,
    "timm": tiny_vit_model,
    "timm_conv": lambda: timm_model("test_efficientnet"),
    "open_clip": open_clip_model,
}


@pytest.mark.parametrize("library", ENCODERS)
def test_an_encoder_is_frozen_and_stays_in_evaluation_mode(library: str) -> None:
    encoder = load_vision(ENCODERS[library]())
    around = nn.ModuleList([encoder]).train()
    assert around.training
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    pixels = pixels_for(encoder).requires_grad_()
    assert not encoder(pixels).requires_grad
    before = copy.deepcopy(encoder.state_dict())
    encoder(pixels)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())


def pickled(encoder: VisionEncoder) -> VisionEncoder:
    copied: VisionEncoder = pickle.loads(pickle.dumps(encoder))
    return copied


# Transformers' models cannot be pickled once they recorded hidden states
@pytest.mark.parametrize(
    ("library", "again"),
    [(library, copy.deepcopy) for library in ENCODERS]
    + [(library, pickled) for library in ENCODERS if library != "transformers"],
)
def test_a_copy_has_weights_of_its_own(library: str, again: Any) -> None:
    encoder = load_vision(ENCODERS[library]())
    pixels = pixels_for(encoder)
    before = encoder(pixels)
    other = again(encoder)
    torch.testing.assert_close(other(pixels), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(encoder(pixels), before)
    assert not torch.equal(other.to("cpu")(pixels), before)


@pytest.mark.parametrize("library", ENCODERS)
def test_half_precision_is_the_models(library: str) -> None:
    encoder = load_vision(ENCODERS[library]())
    pixels = pixels_for(encoder)
    full = encoder(pixels)
    half = encoder.to(torch.bfloat16)(pixels)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), full, dim=-1).mean() > 0.99


def test_a_traced_encoder_follows_weights_that_are_loaded_into_it() -> None:
    encoder = load_vision(timm_model("test_efficientnet"))
    pixels = pixels_for(encoder)
    before = encoder(pixels)
    torch.manual_seed(1)
    other = timm.create_model("test_efficientnet", num_classes=0).eval()
    nn.ModuleDict({"vision": encoder}).load_state_dict(
        {f"vision.model.{name}": tensor for name, tensor in other.state_dict().items()}
    )
    after = encoder(pixels)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, encoder.eager(pixels), atol=1e-4, rtol=1e-4)


class CountsImages(nn.Module):
    """A convolution whose result depends on how many images come together, as a number."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.fails = fails

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.conv(pixels)
        count = int(maps.shape[0])
        return maps.view(count, 4, 4, 4) if self.fails else maps * count


@pytest.mark.parametrize("why", ["switched off", "missing"])
def test_without_the_tracer_a_network_runs_as_it_is(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    assert frozen_graph(layer, layer, (32, 32)) is not None
    if why == "switched off":
        monkeypatch.setenv("ISTHMUS_TRACED", "0")
    else:
        monkeypatch.delattr(torch.jit, "trace")
    assert frozen_graph(layer, layer, (32, 32)) is None


@pytest.mark.parametrize("fails", [True, False])
def test_a_network_that_cannot_be_traced_runs_as_it_is(fails: bool) -> None:
    from isthmus.model.backbones.libraries import Backbone

    model = CountsImages(fails)
    encoder = VisionEncoder(
        Backbone(
            model=model,
            features=model,
            preprocess=lambda image: torch.zeros(3, 32, 32),
            size=(32, 32),
            prefix=0,
            mean=None,
            std=None,
            convolutional=True,
        ),
        VisionConfig(name="counts"),
    )
    for count in (1, 2, 3):
        pixels = pixels_for(encoder, count)
        expected = model(pixels).flatten(2).transpose(1, 2)
        assert torch.equal(encoder(pixels), expected)


def test_padding_keeps_the_whole_image_on_white() -> None:
    model = tiny_vit_model()
    encoder = load_vision(model, resize="pad")
    pixels = encoder.preprocess(Image.new("RGB", (64, 32), (255, 0, 0)))
    data = timm.data.resolve_model_data_config(model)
    mean, std = torch.tensor(data["mean"]), torch.tensor(data["std"])
    white, red = (((torch.tensor(v) - mean) / std) for v in ((1.0,) * 3, (1.0, 0.0, 0.0)))
    column = torch.stack([white] * 8 + [red] * 16 + [white] * 8, dim=1)
    torch.testing.assert_close(pixels, column[:, :, None].expand(3, 32, 32))


def test_transparency_is_white_and_not_what_lies_beneath() -> None:
    encoder = load_vision("tiny-vit")
    hidden = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    assert torch.equal(encoder.preprocess(hidden), encoder.preprocess(white))


def test_preprocessing_can_be_replaced() -> None:
    encoder = load_vision("tiny-vit", preprocess=lambda image: torch.full((3, 32, 32), 0.25))
    assert torch.equal(encoder.preprocess(photograph()), torch.full((3, 32, 32), 0.25))


def test_tiny_vit_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = load_vision("tiny-vit"), load_vision(VisionConfig(name="tiny-vit"))
    assert torch.equal(torch.get_rng_state(), state)
    pixels = pixels_for(first)
    assert torch.equal(first(pixels), second(pixels))


# --- What cannot be had --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tim:vit_base_patch16_224", 'did you mean "timm:NAME"'),
        ("openclip:ViT-B-32/openai", 'did you mean "open_clip:ARCH/PRETRAINED"'),
        ("tiny_vit", 'did you mean "tiny-vit"'),
        ("vit_base_patch16_224", "Choices: asset:NAME, hf:REPO"),
        ("timm:", "Choices:"),
        ("asset:efficientnet-lite", "efficientnet-lite2"),
    ],
)
def test_unknown_names_are_one_line_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)) as caught:
        load_vision(name)
    assert "\n" not in str(caught.value)


def test_a_misspelt_timm_model_is_suggested() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean .*vit_base_patch16_224"):
        load_vision("timm:vit_base_patch16_2244")


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("layer", [-7, 7])
def test_layers_that_are_not_there(make: Any, layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"feature_layer is {layer}: .* layers -1"):
        load_vision(make(), feature_layer=layer)


def test_an_object_of_no_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear is not a timm, Transformers or open_clip"):
        load_vision(nn.Linear(2, 2))


def test_an_encoder_is_taken_as_it_is_and_not_with_other_options() -> None:
    encoder = load_vision("tiny-vit")
    assert load_vision(encoder) is encoder
    with pytest.raises(ConfigError, match="fixed"):
        load_vision(encoder, keep_cls=True)


@pytest.mark.parametrize("scheme", ["hf:", "timm:hf-hub:", "open_clip:hf-hub:"])
def test_without_a_network_the_error_names_the_model(scheme: str) -> None:
    name = f"{scheme}nobody/nothing"
    with pytest.raises(CheckpointError, match=f'^cannot load "{name}".*network') as caught:
        load_vision(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        load_vision(f"hf:{tmp_path}")


# --- Assets --------------------------------------------------------------------------------------


def test_an_asset_is_built_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("test_efficientnet")
    timm.models.save_for_hf(model.eval(), str(tmp_path), safe_serialization=True)
    monkeypatch.setattr(assets, "fetch_asset", lambda name: tmp_path)
    encoder = load_vision("asset:efficientnet-lite2")
    pixels = pixels_for(encoder)
    with torch.no_grad():
        expected = model.forward_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-4, rtol=1e-4)


def test_an_asset_that_is_no_vision_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr(assets, "fetch_asset", lambda name: tmp_path)
    with pytest.raises(ConfigError, match="not a vision encoder"):
        load_vision("asset:smollm2-135m-instruct")
