"""Exported FastVLMs, a convolutional network of timm inside, are the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus.exporting.check import drawn
from isthmus.exporting.jinja import messages_of
from isthmus.exporting.tokens import add_tokens
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import plain

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def composed(name: str = "mobilenetv3_small_050", **options: Any) -> im.VisionLanguageModel:
    vision = im.load_vision(f"timm:{name}", pretrained=False, **options)
    with torch.no_grad():  # as trained ones have it: no map is zero, no two layers are alike
        for buffer_name, buffer in vision.model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.05, 0.2)
    language = tiny_language_model(vocab=264)
    model = im.compose(vision, language, im.MLP(), tokenizer=byte_tokenizer())
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    ("name", "tokens", "patch"),
    [("mobilenetv3_small_050", 49, 32), ("efficientnet_lite2", 81, 28), ("convnext_atto", 49, 32)],
)
@torch.no_grad()
def test_the_export_is_the_model(name: str, tokens: int, patch: int, tmp_path: Path) -> None:
    model = composed(name)
    found = im.export(model, tmp_path / "out")
    assert found.architecture == "FastVlmForConditionalGeneration"
    assert found.difference <= 1e-4
    assert found.pixels < 0.5  # one resampler is Pillow's, the other torchvision's
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert (len(model.layout), told["patch_size"]) == (tokens, patch)
    query = Example(drawn((400, 300), 1), "What is it?")
    prompt = plain([], query)
    batch = model.prepare([prompt.spans], [prompt.images])
    inputs = processor.apply_chat_template(
        messages_of([], query), tokenize=True, return_dict=True, return_tensors="pt"
    )
    added = add_tokens(model)
    assert torch.equal(inputs["input_ids"], added.translated(batch.input_ids, model))
    assert (inputs["pixel_values"] - batch.pixels).abs().mean() < 0.01
    inputs["pixel_values"] = batch.pixels
    got, expected = theirs(**inputs).logits, model(batch).logits
    torch.testing.assert_close(got[..., :259], expected[..., :259], atol=1e-4, rtol=0)
    assert expected[..., :259].std() > 0.1
    other = theirs(**{**inputs, "pixel_values": batch.pixels.flip(-1)}).logits
    assert (other - got).abs().max() > 1e-3  # the image is seen


def test_squeezed_images(tmp_path: Path) -> None:
    im.export(composed(resize="squash"), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    pixels = processor(drawn((400, 300), 1), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    model = composed(resize="squash")
    assert (pixels[0] - model.vision.preprocess(drawn((400, 300), 1))).abs().mean() < 0.01


def test_a_classifier_is_left_out(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv3_small_050", num_classes=10)
    vision = im.load_vision(network, resize="squash")
    vision.config = im.VisionConfig(name="timm:mobilenetv3_small_050", resize="squash")
    language = tiny_language_model()
    model = im.compose(vision, language, im.MLP(), tokenizer=byte_tokenizer())
    im.export(model, tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if "classifier" in name]


def test_the_pipeline_reads_it(tmp_path: Path) -> None:
    im.export(composed(), tmp_path / "out")
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path / "out"))
    messages = messages_of([], Example(drawn((400, 300), 1), "What is it?"))
    [told] = pipe(messages, max_new_tokens=4, return_full_text=False)
    assert told["generated_text"]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("mobilenetv3_small_050", {"resize": "pad"}, "before a convolutional network"),
        ("mobilenetv3_small_050", {"feature_layer": -2}, "more than its last map"),
        ("vit_tiny_patch16_224", {}, "a transformer of timm"),
    ],
)
def test_others_are_refused(name: str, options: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(im.ExportError, match=match):
        im.export(composed(name, **options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_name_in_timm_is_refused(tmp_path: Path) -> None:
    vision = im.load_vision("tiny-cnn")
    vision.config = im.VisionConfig(name="timm:mine")
    model = im.compose(vision, "tiny-lm", im.MLP())
    with pytest.raises(im.ExportError, match="not a network that timm makes by name"):
        im.export(model, tmp_path / "out")
