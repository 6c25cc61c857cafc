"""Towers that read images at their own resolution, joined to any language model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

import isthmus as im
from isthmus import testing
from isthmus.config.file import run_from_mapping
from isthmus.config.model import TrainConfig
from isthmus.demonstrations.embed import ImageEmbedder
from isthmus.errors import ConfigError
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.backbones.feature_shape import NativeGrid
from isthmus.model.backbones.naflex import naflex_patches
from isthmus.model.backbones.native import patches_of, pixels_of
from isthmus.model.backbones.tiny_qwen_vl import FAMILIES, IMAGE, SIDE, write_tiny_qwen_vl
from isthmus.model.clip.joined import Head, HeadConfig, JoinedImageTower
from isthmus.model.features import PatchFeatures
from isthmus.model.layout import HOLE
from isthmus.training.run import build
from isthmus.training.smoke import smoke

TOWERS = [*FAMILIES, "siglip2"]
RESAMPLER = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
DEEP = im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2)
CONNECTORS: dict[str, Any] = {
    "linear": im.Linear(),
    "mlp": im.MLP(),
    "pixel_shuffle": im.PixelShuffle(factor=2),
    "merger": im.Merger(norm="rms"),
    "resampler": RESAMPLER,
    "attention_pool": im.AttentionPool(tokens=4, heads=2),
    "qformer": im.QFormer(queries=3, depth=1, heads=2, width=16),
}


def write_tiny_siglip2(folder: Path) -> Path:
    """A NaFlex tower of SigLIP 2 with its processor; 16 patches at most."""
    options = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Siglip2VisionConfig(
        **options, num_attention_heads=2, num_patches=9, patch_size=8, vision_use_head=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Siglip2VisionModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: write_tiny_qwen_vl(tmp_path_factory.mktemp(name), name) for name in FAMILIES}
    return made | {"siglip2": write_tiny_siglip2(tmp_path_factory.mktemp("siglip2"))}


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


IMAGES = [image(1), image(2, (20, 90)), image(3, (64, 64)), image(4, (100, 30))]


@pytest.mark.parametrize("patch", [1, 3])
@pytest.mark.parametrize("merge", [1, 2])
def test_patches_and_pixels_are_one_another(patch: int, merge: int) -> None:
    native = NativeGrid(patch, merge)
    pixels = torch.randn(2, 3, 4 * native.multiple, 3 * native.multiple)
    patches = patches_of(pixels, native, 2).unflatten(0, (2, -1))  # type: ignore[no-untyped-call]
    for own, expected in zip(patches, pixels, strict=True):
        assert torch.equal(pixels_of(own, 4 * merge, 3 * merge, native), expected)


@pytest.mark.parametrize("layer", [-1, -2, "norm"])
@pytest.mark.parametrize("size", [(50, 70), (9, 200), (64, 64)])
def test_naflex_features_are_the_tower_s_own(
    folders: dict[str, Path], size: tuple[int, int], layer: Any
) -> None:
    """Without the padding that its processor puts behind the patches."""
    folder = folders["siglip2"]
    options: dict[str, Any] = {"final_norm": True} if layer == "norm" else {"feature_layer": layer}
    encoder = im.load_vision(f"hf:{folder}", **options)
    tower, shown = Siglip2VisionModel.from_pretrained(folder).eval(), image(0, size)
    inputs = Siglip2ImageProcessor.from_pretrained(folder)(images=shown, return_tensors="pt")
    pixels = encoder.preprocess(shown)
    count = int(inputs["spatial_shapes"].prod())
    patches = naflex_patches(pixels[None], NativeGrid(8, 1))
    assert torch.equal(patches, inputs["pixel_values"][:, :count])
    with torch.no_grad():
        out = tower(**inputs, output_hidden_states=True)
        expected = out.last_hidden_state if layer == "norm" else out.hidden_states[layer]
        got = encoder(pixels[None])
    torch.testing.assert_close(got, expected[:, :count], rtol=0, atol=1e-5)
    if layer == -1:
        assert not torch.equal(out.hidden_states[-1], out.last_hidden_state)


@pytest.mark.parametrize("tower", TOWERS)
def test_images_of_one_size_go_together(folders: dict[str, Path], tower: str) -> None:
    encoder = im.load_vision(f"hf:{folders[tower]}")
    pixels = torch.randn(3, 3, 3 * SIDE, 2 * SIDE)
    together = encoder(pixels)
    alone = torch.cat([encoder(one[None]) for one in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    native = encoder.shape.native
    assert native is not None
    assert together.shape[1] == 6 * SIDE**2 // native.patch**2
    assert together.shape[2] == encoder.shape.width


@pytest.mark.parametrize(
    ("tower", "name", "fusion"),
    [
        *((tower, name, "inline") for tower in TOWERS for name in CONNECTORS),
        *(("siglip2", name, "cross_attention") for name in CONNECTORS),
    ],
)
def test_a_strip_of_ones_own(folders: dict[str, Path], tower: str, name: str, fusion: str) -> None:
    """The suite, and the engine among prompts whose images differ in size."""
    source, connector = f"hf:{folders[tower]}", CONNECTORS[name]
    own = DEEP if fusion == "cross_attention" else im.Inline()
    if tower == "siglip2" and name in ("pixel_shuffle", "merger"):
        with pytest.raises(ConfigError, match="squares of 1 x 1"):
            im.compose(source, "tiny-lm", connector)
        return
    torch.manual_seed(0)
    model = im.compose(source, "tiny-lm", connector, own)
    assert model.config.media == (im.NativeImages(),)
    checks = [testing.check_padding, testing.check_decoding]
    if len(model.layout) < 40:  # the suite packs images that are short beside its texts
        checks.append(testing.check_packing)
    for check in checks:
        check(model)
    prompts = [
        im.Prompt("<image>a<image>b", tuple(IMAGES[:2])),
        im.Prompt("no image"),
        im.Prompt("so <image>", (IMAGES[2],)),
        im.Prompt("<image> c", (IMAGES[3],)),
    ]
    alone = [
        im.Engine(model, batch_size=1).generate([p], max_new_tokens=4)[0].completions[0]
        for p in prompts
    ]
    together = im.Engine(model).generate(prompts, max_new_tokens=4)
    assert [m.completions[0].ids for m in together] == [one.ids for one in alone]
    with ServingEngine(model, prefill_tokens=16) as engine:
        asked = [GenerationRequest(prompt=p, max_new_tokens=4) for p in prompts]
        said = [ticket.result()[0] for ticket in [engine.submit(one) for one in asked]]
    assert [text.strip() for text in said] == [one.text for one in alone]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["mlp", "resampler"])
def test_it_trains_and_comes_back(
    folders: dict[str, Path], tmp_path: Path, tower: str, name: str
) -> None:
    for number, one in enumerate(IMAGES):
        one.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    media = [im.NativeImages(max_pixels=12 * SIDE**2)]
    model = im.compose(f"hf:{folders[tower]}", "tiny-lm", CONNECTORS[name], media=media)
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=2, batch_size=4, pack=256, **options)
    im.train(model, tmp_path, config, tmp_path / "run", quiet=True)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"connector", "special_tokens"}
    again = im.load(tmp_path / "run")
    assert again.config.media == tuple(media)
    batch = model.prepare(["<image>Output:"], [[IMAGES[1]]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def test_layouts_tell_the_grid_where_tokens_are_squares(folders: dict[str, Path]) -> None:
    source, shown = f"hf:{folders['qwen2_vl']}", torch.zeros(3, 2 * SIDE, 3 * SIDE)
    expected = {"merger": (6, (2, 3)), "pixel_shuffle": (6, (2, 3)), "mlp": (24, None)}
    for name, (count, grid) in (expected | {"resampler": (3, None)}).items():
        model = im.compose(source, "tiny-lm", CONNECTORS[name])
        layout = model.media[0].layout(model, shown)
        assert (layout.ids, layout.grid) == ((HOLE,) * count, grid)
    across = im.compose(source, "tiny-lm", im.Merger(), DEEP)
    assert across.media[0].layout(across, shown).grid is None


def test_three_axes_between_parts_of_different_families(folders: dict[str, Path]) -> None:
    """Qwen3-VL's tower and our merger before Qwen2-VL's decoder, which has a row and a column."""
    language = im.load_language(f"hf:{folders['qwen2_vl']}")
    encoder = im.load_vision(f"hf:{folders['qwen3_vl']}", deepstack=False)
    model = im.compose(encoder, language, im.Merger())
    batch = model.prepare(["<image>a"], [[image(1)]])
    assert model.positions(batch).tokens.shape == (3, *batch.input_ids.shape)
    for check in (testing.check_padding, testing.check_decoding, testing.check_packing):
        check(model)


def test_a_tower_as_an_object_is_left_as_it_is(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = folders["qwen2_5_vl"]
    tower = AutoModelForImageTextToText.from_pretrained(folder).model.visual
    processor = AutoProcessor.from_pretrained(folder).image_processor
    before = copy.deepcopy(tower)
    encoder = im.load_vision(tower, preprocess=processor)
    assert type(tower.merger) is type(before.merger)
    pixels = encoder.preprocess(image(1))
    named = im.load_vision(f"hf:{folder}")
    assert torch.equal(encoder(pixels[None]), named(named.preprocess(image(1))[None]))
    bare = im.load_vision(tower)
    with pytest.raises(ConfigError, match="without its preprocessing"):
        bare.preprocess(image(1))


def test_what_such_towers_do_not_give(folders: dict[str, Path]) -> None:
    source = f"hf:{folders['qwen2_vl']}"
    for options in ({"feature_layer": -2}, {"final_norm": True}, {"keep_cls": True}):
        with pytest.raises(ConfigError, match="features of its last block"):
            im.load_vision(source, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="deepstack = true"):
        im.load_vision(source, deepstack=True)
    with pytest.raises(ConfigError, match="images are all of one size"):
        im.compose(source, "tiny-lm", im.Pool(tokens=4))
    with pytest.raises(ConfigError, match="no array of one shape"):
        PatchFeatures(im.load_vision(source))
    with pytest.raises(ConfigError, match="side by side"):
        im.compose(source, "tiny-lm", im.Merger(deepstack=2))
    media = [im.NativeImages(min_pixels=9)]
    low = im.compose(f"hf:{folders['siglip2']}", "tiny-lm", im.MLP(), media=media)
    with pytest.raises(ConfigError, match="min_pixels = 9"):
        low.prepare(["<image>"], [[image(1)]])
    with pytest.raises(ConfigError, match="feature_layer is -9"):
        im.load_vision(f"hf:{folders['siglip2']}", feature_layer=-9)
    with pytest.raises(ConfigError, match="images of one size"):
        JoinedImageTower(
            im.load_vision(source), Head(32, 8, HeadConfig()), pooling="mean", locked=True
        )
    squashed = im.load_vision(source, resize="squash")
    assert PatchFeatures(squashed).shape == (squashed.shape.tokens, squashed.shape.width)
    with pytest.raises(ConfigError, match='resize = "own"'):
        im.compose(squashed, "tiny-lm", im.MLP(), media=[im.NativeImages(max_pixels=99)])
    assert squashed.preprocess(image(1)).shape == (3, *squashed.image_size)
    assert replace(squashed.config, resize="own") == im.load_vision(source).config


@pytest.mark.parametrize("tower", ["qwen2_5_vl", "siglip2"])
def test_images_of_any_size_are_embedded(
    folders: dict[str, Path], tower: str, tmp_path: Path
) -> None:
    """To choose demonstrations by their images."""
    encoder = im.load_vision(f"hf:{folders[tower]}")
    examples = [im.Example(one) for one in (*IMAGES, image(9, IMAGES[0].size[::-1]))]
    together = ImageEmbedder(encoder, tmp_path)(examples)
    for example, vector in zip(examples, together, strict=True):
        [alone] = ImageEmbedder(encoder)([example])
        np.testing.assert_allclose(vector, alone, atol=1e-3)
        features = encoder(encoder.preprocess(example.images[0])[None])[0].mean(dim=0)
        expected = torch.nn.functional.normalize(features, dim=0).numpy()
        np.testing.assert_allclose(alone, expected, atol=1e-3)
    with pytest.raises(ConfigError, match='pooling="mean"'):
        ImageEmbedder(encoder, pooling="own")


def test_a_dual_encoder_s_tower(folders: dict[str, Path], tmp_path: Path) -> None:
    """NaFlex repositories hold a text tower too."""
    vision = Siglip2VisionModel.from_pretrained(folders["siglip2"])
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 40, "projection_size": 32}
    whole = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision.config.to_dict()))
    whole.vision_model.load_state_dict(vision.state_dict())
    whole.save_pretrained(tmp_path)
    Siglip2ImageProcessor.from_pretrained(folders["siglip2"]).save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 16, 24)
    alone = im.load_vision(f"hf:{folders['siglip2']}")
    assert torch.equal(im.load_vision(f"hf:{tmp_path}")(pixels), alone(pixels))


def test_a_smoke_run_of_a_qwen_strip(folders: dict[str, Path], tmp_path: Path) -> None:
    """The configuration of docs/released.md, shrunk: one size of images, no deepstack."""
    name = f"hf:{folders['qwen3_vl']}"
    tables = {
        "vision": {"name": name, "deepstack": True},
        "language": {"name": name},
        "connector": {"type": "merger", "deepstack": 2},
        "fusion": {"type": "inline", "deepstack": 2},
        "media": [{"type": "native", "max_pixels": 1000}],
        "tokens": {"image_id": IMAGE},
        "data": [{"path": "pairs.jsonl"}],
    }
    small, records = smoke(run_from_mapping(tables))
    model = build(small, "cpu")
    assert isinstance(model, im.VisionLanguageModel)
    assert (model.config.media, model.config.vision.deepstack) == ((), False)
    assert records
