"""open_clip's dual encoders: features, logits and zero-shot weights are open_clip's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from isthmus.classification.classifier_cache import zero_shot_weights
from isthmus.classification.templates import prompts_of
from isthmus.errors import CheckpointError, ConfigError, PromptError
from isthmus.model.clip.checkpoint import load_clip, save_clip

open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = [
    "a photo of a cat.",
    "An &amp;ODD   one_42",
    "x",
    "a close-up photo of the great white shark",
]
FORMS = {
    "clip": {},
    "quickgelu": {"quick_gelu": True},
    "custom-eos": {"custom": True, "text": {"pool_type": "eos", "eos_id": 49407}},
    "custom-bias": {"custom": True, "bias": -10.0, "text": {"proj_bias": True}},
    "no-causal-mask": {"custom": True, "text": {"no_causal_mask": True, "pool_type": "last"}},
}


def build(form: str) -> Any:
    told: dict[str, Any] = FORMS[form]
    kind = open_clip.CustomTextCLIP if told.get("custom") else open_clip.CLIP
    model = kind(
        embed_dim=24,
        vision_cfg=dict(VISION),
        text_cfg={**TEXT, **told.get("text", {})},
        quick_gelu=told.get("quick_gelu", False),
        init_logit_bias=told.get("bias"),
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def photos(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(50, 70), (33, 32), (20, 90)][:count]
    return [Image.fromarray(rng.integers(0, 255, (*s, 3), np.uint8)) for s in sizes]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_features_logits_and_weights_equal_open_clip(form: str) -> None:
    theirs, tokenizer = build(form), open_clip.tokenizer.SimpleTokenizer()
    ours = load_clip(theirs, tokenizer=tokenizer)
    transform = open_clip.image_transform(32, is_train=False)
    pixels = torch.stack([transform(p) for p in photos()])
    images, texts = (
        theirs.encode_image(pixels, normalize=True),
        theirs.encode_text(tokenizer(TEXTS), normalize=True),
    )
    close(ours.encode_images(photos()), images)
    close(ours.encode_texts(TEXTS), texts)
    close(ours.encode_texts(TEXTS, trim=False), texts)
    close(ours.logits(images, texts), theirs.get_logits(pixels, tokenizer(TEXTS))[0])
    assert (texts[0] - texts[1]).abs().max() > 0.01


def test_tokens_equal_open_clip_one_by_one() -> None:
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    ours = load_clip(build("clip"), tokenizer=tokenizer)
    expected = tokenizer(TEXTS)
    assert torch.equal(ours.tokenize(TEXTS, trim=False)["input_ids"], expected)
    trimmed = ours.tokenize(TEXTS)["input_ids"]
    longest = int((expected != 0).sum(1).max())
    assert torch.equal(trimmed, expected[:, :longest])
    assert longest < 15


def test_padding_is_trimmed_only_where_it_changes_nothing() -> None:
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    fixed = {f: load_clip(build(f), tokenizer=tokenizer).text.fixed_length for f in FORMS}
    assert fixed == {**dict.fromkeys(FORMS, False), "no-causal-mask": True}


def test_quick_gelu_is_another_model() -> None:
    """The names with -quickgelu, and weights trained with it, must not be read as plain GELU."""
    plain, quick = build("clip"), build("quickgelu")
    quick.load_state_dict(plain.state_dict())
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    a, b = (load_clip(m, tokenizer=tokenizer).encode_texts(TEXTS) for m in (plain, quick))
    assert (a - b).abs().max() > 1e-4


def test_weights_trained_with_quick_gelu_force_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "ViT-B-32/openai" names the plain architecture, and its weights want the other."""
    seen: dict[str, Any] = {}

    def stop(arch: str, **options: Any) -> Any:
        seen.update(options)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", stop)
    for tag, expected in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(CheckpointError, match="no network"):
            load_clip(f"open_clip:ViT-B-32/{tag}")
        assert seen["force_quick_gelu"] is expected


def test_names_and_objects_that_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="did you mean ViT-B-32"):
        load_clip("open_clip:VitB32/openai")
    with pytest.raises(ConfigError, match="without its tokenizer"):
        load_clip(build("clip"))
    with pytest.raises(ConfigError, match=r"DualEncoder\.join"):
        load_clip(torch.nn.Linear(1, 1), tokenizer=open_clip.tokenizer.SimpleTokenizer())


def test_a_prompt_beyond_the_context_is_named() -> None:
    """open_clip cuts it silently."""
    ours = load_clip(build("clip"), tokenizer=open_clip.tokenizer.SimpleTokenizer())
    with pytest.raises(PromptError, match=r'"so so.*" has 82 tokens, .* at most 77'):
        ours.encode_texts(["a cat", "so " * 80])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved open_clip model, as its `local-dir:` reads one."""
    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = build("quickgelu")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    preprocess |= {"resize_mode": "squash", "size": 32}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    told = {"model_cfg": config, "preprocess_cfg": preprocess}
    (place / "open_clip_config.json").write_text(json.dumps(told))
    save_file(model.state_dict(), place / "open_clip_model.safetensors")
    return place


@torch.no_grad()
def test_a_model_by_name_brings_its_own_preprocessing(folder: Path) -> None:
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load_clip(f"open_clip:local-dir:{folder}")
    for image in photos():
        assert torch.equal(ours.preprocess(image), transform(image))
    pixels = torch.stack([transform(p) for p in photos()])
    close(ours.encode_images(photos()), theirs.eval().encode_image(pixels, normalize=True))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    close(ours.encode_texts(TEXTS), theirs.encode_text(tokens, normalize=True))
    assert not torch.equal(transform(photos()[0]), build_transform()(photos()[0]))


def build_transform() -> Any:
    return open_clip.image_transform(32, is_train=False)


def test_a_model_by_name_trained_further_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    model = load_clip(f"open_clip:local-dir:{folder}")
    before = model.fingerprint()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    again = load_clip(save_clip(model, tmp_path))
    assert again.fingerprint() == model.fingerprint() != before
    assert torch.equal(again.logit_scale, model.logit_scale)
    wrapped = load_clip(build("clip"), tokenizer=open_clip.tokenizer.SimpleTokenizer())
    with pytest.raises(CheckpointError, match="wrapped as an object"):
        save_clip(wrapped, tmp_path)


@torch.no_grad()
def test_siglip_of_open_clip_token_by_token(tmp_path: Path) -> None:
    """Its tokenizers of Transformers: canonical text, fixed padding, the last place is read."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("a photo of the great white shark\nan ice cream cone\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    transformers.SiglipTokenizer(str(tmp_path / "spiece.model")).save_pretrained(tmp_path)
    tokenizer = open_clip.tokenizer.HFTokenizer(
        str(tmp_path), context_length=40, clean="canonicalize"
    )
    text = {"context_length": 40, "width": 32, "heads": 2, "layers": 2, "proj_bias": True}
    text |= {"no_causal_mask": True, "pool_type": "last", "vocab_size": 64}
    theirs = open_clip.CustomTextCLIP(
        embed_dim=24, vision_cfg=dict(VISION), text_cfg=text, init_logit_bias=-10.0
    ).eval()
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = load_clip(theirs, tokenizer=tokenizer)
    texts = ["A photo of the great_white shark!", "an ice-cream cone", "the &amp; shark"]
    expected = tokenizer(texts)
    assert torch.equal(ours.tokenize(texts)["input_ids"], expected)
    assert expected.shape == (3, 40)
    assert torch.equal(expected[0], tokenizer(["a photo of the great white shark"])[0])
    close(ours.encode_texts(texts), theirs.encode_text(expected, normalize=True))
    pixels = torch.randn(2, 3, 32, 32)
    close(
        ours.logits(ours.encode_pixels(pixels), ours.encode_texts(texts)),
        theirs.get_logits(pixels, expected)[0],
    )
    with pytest.raises(PromptError, match="at most 40"):
        ours.tokenize(["shark " * 40])
    with pytest.raises(ConfigError, match="how long a text is"):
        load_clip(theirs, tokenizer=lambda texts: expected)


@torch.no_grad()
def test_zero_shot_weights_equal_open_clip() -> None:
    theirs, tokenizer = build("clip"), open_clip.tokenizer.SimpleTokenizer()
    ours = load_clip(theirs, tokenizer=tokenizer)
    labels = ["cat", "great white shark", "ice cream"]
    expected = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, labels, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    close(zero_shot_weights(ours, prompts_of(labels, "imagenet-80")), expected.T)
