"""Exported dual encoders are the models, trained weights and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, AutoProcessor

import isthmus as im
from isthmus.exporting.check import drawn
from isthmus.model.backbones.tiny import byte_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXTS = ["a cat", "two dogs and a horse"]


def saved(folder: Path, kind: str) -> str:
    """A CLIP or SigLIP over bytes, as a repository of Transformers has it."""
    text = {**SIZES, "vocab_size": 259, "max_position_embeddings": 64}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    ids = {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    if kind == "clip":
        config: Any = transformers.CLIPConfig(
            text_config={**text, **ids}, vision_config=vision, projection_dim=16
        )
        model: Any = transformers.CLIPModel(config)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor: Any = transformers.CLIPImageProcessor(**size)
    else:
        config = transformers.SiglipConfig(
            text_config={**text, **ids, "projection_size": 32}, vision_config=vision
        )
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = template()
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return f"hf:{folder}"


def template() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 257), ("</s>", 258)]
    )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_what_was_trained_is_written(kind: str, half: bool, tmp_path: Path) -> None:
    model = im.load(saved(tmp_path / "clip", kind))
    for parameter in model.parameters():  # as training does
        parameter += 0.01 * torch.randn_like(parameter)
    before = AutoModel.from_pretrained(tmp_path / "clip").state_dict()
    if half:
        model.image.to(torch.bfloat16)
    found = im.export(model, tmp_path / "out")
    assert found.architecture == ("CLIPModel" if kind == "clip" else "SiglipModel")
    assert (found.pixels, found.notes) == (0.0, ())
    assert found.difference <= 1e-4 * 100
    theirs = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    options = {"padding": "max_length", "max_length": 64} if kind == "siglip" else {"padding": True}
    images = [drawn((90, 60), 1), drawn((50, 70), 2)]
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", **options)
    expected = model.float().logits(model.encode_images(images), model.encode_texts(TEXTS))
    inputs.pop("attention_mask", None)  # SigLIP was trained without, and CLIP needs none
    got = theirs(**inputs).logits_per_image
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-5)
    assert not torch.equal(theirs.state_dict()["logit_scale"], before["logit_scale"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert str(tmp_path) not in card


def test_a_saved_one_by_its_folder(tmp_path: Path) -> None:
    model = im.load(saved(tmp_path / "clip", "clip"))
    with torch.no_grad():
        model.logit_scale += 0.5
    im.save(model, tmp_path / "saved")
    im.export(tmp_path / "saved", tmp_path / "out")
    theirs = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.logit_scale, model.logit_scale)


def test_another_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = im.load(saved(tmp_path / "clip", "clip"))
    whole = model.image.model
    write = type(whole).save_pretrained

    def broken(self: Any, folder: Path, **options: Any) -> None:
        other = type(self)(self.config)
        other.load_state_dict(self.state_dict())
        with torch.no_grad():
            other.text_projection.weight *= -1
        write(other, folder, **options)

    monkeypatch.setattr(type(whole), "save_pretrained", broken)
    with pytest.raises(im.ExportError, match=r"scores differ by [0-9.]+, expected 0.0001"):
        im.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
