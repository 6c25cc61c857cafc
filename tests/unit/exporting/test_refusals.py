"""What has no form in another library is refused in one line, before anything is written."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import isthmus as im
from isthmus.exporting.folder import refuse_full_disk
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.join import bare_language_model
from isthmus.prompts.prompt import Example, Prompt

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def clip() -> Any:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))


def processor() -> Any:
    crop = {"height": 32, "width": 32}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)


def encoder(model: Any = None, **options: Any) -> im.VisionEncoder:
    return im.load_vision(model or clip(), preprocess=processor(), feature_layer=-2, **options)


def joined(**parts: Any) -> im.VisionLanguageModel:
    """A model that can be exported, but for the parts that are told."""
    chosen = {
        "vision": parts.pop("vision", None) or encoder(),
        "language": parts.pop("language", "tiny-lm"),
        "connector": parts.pop("connector", im.MLP()),
        **parts,
    }
    return im.compose(**chosen)


def refused(model: Any, tmp_path: Path, match: str) -> None:
    with pytest.raises(im.ExportError, match=match) as error:
        im.export(model, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_has_a_form_is_written(tmp_path: Path) -> None:
    assert im.export(joined(), tmp_path / "out").difference <= 1e-4


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            {"fusion": im.CrossAttention(every=2)},
            r"adds layers of gated cross-attention .* no class .*Inline\(\).*; serve it with",
        ),
        (
            {"fusion": im.Inline(adapter=im.Adapter())},
            r"adapters that act in sight of images.*without an adapter; serve it",
        ),
        ({"connector": im.Linear()}, r"connector is Linear.*expected MLP\(depth=2\); serve it"),
        ({"connector": im.Pool(tokens=4)}, r"connector is Pool.*expected MLP\(depth=2\)"),
        ({"connector": im.MLP(depth=3)}, r"MLP\(depth=3\) .*has two linear layers"),
        ({"vision": "tiny-vit"}, r"vision encoder is tiny-vit .*CLIP and SigLIP alone"),
    ],
)
def test_parts_without_a_class(parts: dict[str, Any], match: str, tmp_path: Path) -> None:
    refused(joined(**parts), tmp_path, match)


def test_a_connector_of_ones_own(tmp_path: Path) -> None:
    class Own(torch.nn.Linear):
        num_tokens, width = 16, 64

    refused(joined(connector=Own(16, 64)), tmp_path, "connector is a module of your own")


def test_padded_images_that_are_no_squares(tmp_path: Path) -> None:
    model = joined(vision=encoder(resize="pad"))
    model.vision.image_size = (32, 24)
    refused(model, tmp_path, "padded images of 32 x 24 pixels")


def test_another_tower(tmp_path: Path) -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "patch_size"}
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, patch_size=8))
    refused(joined(vision=encoder(dino)), tmp_path, "is a Dinov2Model, which .* cannot hold")


def test_a_tower_read_behind_its_final_norm(tmp_path: Path) -> None:
    vision = im.load_vision(clip(), preprocess=processor(), final_norm=True)
    refused(joined(vision=vision), tmp_path, "read behind its final norm")


def test_a_network_of_timm_handed_in(tmp_path: Path) -> None:
    from isthmus.model.backbones.tiny import tiny_cnn_model

    refused(joined(vision=im.load_vision(tiny_cnn_model())), tmp_path, "is a ResNet, which .*hold")


def test_a_tower_of_open_clip_with_more_than_clip_has(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    sizes = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    told = {**sizes, "ls_init_value": 0.1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=told, text_cfg={"width": 32, "heads": 2})
    vision = im.load_vision(model, feature_layer=-2)
    refused(joined(vision=vision), tmp_path, "is a VisionTransformer, which .* cannot hold")


def test_a_tower_without_its_processor(tmp_path: Path) -> None:
    bare = im.load_vision(clip(), preprocess=lambda image: torch.zeros(3, 32, 32), feature_layer=-2)
    refused(joined(vision=bare), tmp_path, "without an image processor of Transformers")


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_decoders_of_another_build(family: str, tmp_path: Path) -> None:
    language = tiny_language_model(family)
    refused(joined(language=language, tokenizer=byte_tokenizer()), tmp_path, "whose decoder")


@pytest.mark.parametrize("family", ["gemma2", "phi"])
def test_heads_that_do_more(family: str, tmp_path: Path) -> None:
    """A soft cap, and a bias: Transformers' class would lose them without a word."""
    language = tiny_language_model(family)
    if family == "phi":
        torch.nn.init.normal_(language.lm_head.bias)
    refused(joined(language=language, tokenizer=byte_tokenizer()), tmp_path, "more to its logits")


def test_a_tokenizer_with_the_same_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens("<image>", special_tokens=True)
    language = tiny_language_model(vocab=260)
    refused(joined(language=language, tokenizer=tokenizer), tmp_path, "token <image> of its own")


def test_other_models(tmp_path: Path) -> None:
    refused(bare_language_model("tiny-lm"), tmp_path, '"tiny-lm" is a language model alone')
    refused("hf:nobody/none", tmp_path, '"hf:nobody/none" is a language model alone')
    joint = im.DualEncoder.join("tiny-vit", "tiny-text", width=8)
    refused(joint, tmp_path, "is a dual encoder that is not of Transformers")


def test_the_shipped_model_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "nothing"))
    with pytest.raises(im.ExportError, match='"tiny" cannot be exported: its fusion adds adapters'):
        im.export("tiny", tmp_path / "out")


def test_a_saved_model_with_a_connector_of_ones_own(tmp_path: Path) -> None:
    class Own(torch.nn.Linear):
        num_tokens, width = 16, 64

    im.save(joined(connector=Own(16, 64)), tmp_path / "saved")
    with pytest.raises(im.ExportError, match="connector is a module of your own"):
        im.export(tmp_path / "saved", tmp_path / "out")


def test_an_unknown_library(tmp_path: Path) -> None:
    with pytest.raises(im.ConfigError, match='"transformer": did you mean "transformers"'):
        im.export(joined(), tmp_path / "out", to="transformer")  # type: ignore[arg-type]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(im.OutputError, match=r"needs .* GB and its disk has .* GB free"):
        refuse_full_disk(tmp_path / "not" / "there", 1 << 60)


@pytest.mark.parametrize("to", ["transformers", "gguf"])
def test_a_disk_that_fills_up_leaves_nothing(to: Any, tmp_path: Path) -> None:
    model = joined()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(im.OutputError, match=r"cannot write .*out: .*nothing was kept"):
            im.export(model, tmp_path / "not" / "there" / "out", to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["transformers", "gguf"])
def test_a_place_below_a_file(to: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(im.OutputError, match="cannot write"):
        im.export(joined(), tmp_path / "file" / "out", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_template_of_ones_own_has_no_program() -> None:
    class Own:
        def __call__(self, shots: Any, query: Example, **told: str) -> Prompt:
            return Prompt("")

        def conversation(self, turns: Any, **told: str) -> tuple[()]:
            return ()

    from isthmus.exporting.jinja import jinja_of

    with pytest.raises(im.ExportError, match="is a Own of your own"):
        jinja_of(Own())


def test_other_media(tmp_path: Path) -> None:
    model = joined()
    model.config = replace(model.config, media=(im.MLP(),))  # any configuration will do
    refused(model, tmp_path, r"media besides images \(MLP\)")
