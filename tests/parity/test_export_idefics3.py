"""Exported models with a pixel shuffle are the models: Transformers' Idefics3 says the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus.config.model import TokensConfig
from isthmus.exporting import idefics3
from isthmus.exporting.check import drawn
from isthmus.exporting.jinja import messages_of
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named

from .test_export import CHATML, SIZES, scrambled

NAMES = ("<|pic|>", "<|pic_begin|>", "<|pic_kind|>")
"""The token of an image, and two that stand beside it."""


def composed(
    folder: Path,
    *,
    rows: int = 264,
    tied: bool = False,
    names: tuple[str, ...] = NAMES,
    sizes: dict[str, int] | None = None,
    image: dict[str, Any] | None = None,
    tokens: TokensConfig | None = None,
    **options: Any,
) -> im.VisionLanguageModel:
    """A SigLIP, a pixel shuffle and a language model whose tokens stand around images."""
    tower = transformers.SiglipVisionConfig(**{**SIZES, **(sizes or {})})
    side = tower.image_size
    processor = transformers.SiglipImageProcessor(
        size={"height": side, "width": side}, **(image or {})
    )
    scrambled(transformers.SiglipVisionModel(tower)).save_pretrained(folder / "tower")
    processor.save_pretrained(folder / "tower")
    language = tiny_language_model(options.pop("family", "llama"), vocab=rows)
    if tied:
        language.config.tie_word_embeddings = True
        language.tie_weights()
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    if options.get("template") == "chat":
        tokenizer.chat_template = CHATML
    language.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    own = tokens or TokensConfig(image_id=ids[0], before=(ids[1], ids[2]), after=(ids[1],))
    vision = im.VisionConfig(
        name=f"hf:{folder / 'tower'}",
        **{"final_norm": True, **options.pop("vision", {})},
    )
    lm = im.LanguageConfig(name=f"hf:{folder / 'language'}", lora_rank=options.pop("lora", 0))
    connector = options.pop("connector", im.PixelShuffle(factor=2))
    model = im.compose(vision, lm, connector, tokens=own, **options)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def assert_same(model: im.VisionLanguageModel, folder: Path) -> None:
    """Texts, ids, pixels, logits and greedy tokens of what another process would load."""
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    again = im.load(folder)
    added = idefics3.add_tokens(model)
    assert type(processor).__name__ == "Idefics3Processor"
    first, second = drawn((90, 60), 1), drawn((50, 70), 2)
    template = template_named(model.config.template, model.language.tokenizer)
    for shots, query in (
        ([], Example((), "Why?")),
        ([], Example(first, "What is it?")),
        ([], Example((first, second), "Which of them?")),
        ([Example(first, "This?", "a dog"), Example((), "1 + 1?", "2")], Example(second, "That?")),
    ):
        prompt = template(shots, query)
        inputs = processor.apply_chat_template(
            messages_of(shots, query),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        batch = model.prepare([prompt.spans], [prompt.images])
        assert torch.equal(inputs["input_ids"], added.translated(batch.input_ids, model))
        if batch.pixels is not None:
            assert isinstance(batch.pixels, torch.Tensor)
            told = inputs["pixel_values"]
            assert (told[0] - batch.pixels).abs().mean() < 0.02  # of two resamplers
            inputs["pixel_values"] = batch.pixels[None]
        expected, got = model(batch).logits, theirs(**inputs).logits
        torch.testing.assert_close(got[..., :259], expected[..., :259], atol=1e-4, rtol=0)
        assert expected[..., :259].std() > 0.1
        if batch.pixels is not None:
            other = theirs(**{**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}).logits
            assert (other - got).abs().max() > 1e-3  # images are seen
        # and what was written comes in again
        own = again.prepare([prompt.text], [list(batch.pixels) if prompt.images else []])
        assert torch.equal(own.input_ids, inputs["input_ids"])
        torch.testing.assert_close(again(own).logits, got, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True, "rows": 262},
        {"family": "qwen2", "template": "chat", "vision": {"resize": "squash"}},
        {"names": ("<image>", "<fake_token_around_image>", "<global-img>"), "rows": 300},
        {"connector": im.PixelShuffle(factor=4), "lora": 2},
    ],
    ids=["plain", "tied", "chat, squeezed", "its own names", "lora"],
)
def test_the_export_is_the_model(options: dict[str, Any], tmp_path: Path) -> None:
    model = composed(tmp_path, **options)
    found = im.export(model, tmp_path / "out")
    assert (found.architecture, found.difference <= 1e-4) == (idefics3.ARCHITECTURE, True)
    assert found.pixels < 0.1
    assert_same(model, tmp_path / "out")


def test_the_pipeline_reads_it_and_says_no_token_of_an_image(tmp_path: Path) -> None:
    model = composed(tmp_path)
    im.export(model, tmp_path / "out")
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path / "out"))
    messages = messages_of([], Example(drawn((400, 300), 1), "What is it?"))
    [told] = pipe(messages, max_new_tokens=4, return_full_text=False)
    assert told["generated_text"]
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    added = idefics3.add_tokens(model)
    assert set(settings["suppress_tokens"]) >= {added.image_id, *added.renamed.values()}


def test_images_of_a_released_size(tmp_path: Path) -> None:
    """27 patches a side, as SigLIP has of 384 pixels; Idefics3 rounds none to another place."""
    model = composed(
        tmp_path,
        sizes={"image_size": 54, "patch_size": 2},
        connector=im.PixelShuffle(factor=3),
        image={"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "resample": 2},
    )
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vision": {"final_norm": False}}, "behind the final norm"),
    ({"vision": {"resize": "pad"}}, 'got True, -1 and "pad"'),
    ({"tokens": TokensConfig(image_id=259)}, "three tokens around each image"),
    ({"tokens": TokensConfig(image_id=259, before=(260,), after=(260,))}, "three tokens around"),
    ({"tokens": TokensConfig(image_id=259, before=(97, 260), after=(97,))}, "token 97 stands"),
    (
        {"sizes": {"image_size": 58, "patch_size": 2}, "connector": im.PixelShuffle(factor=29)},
        "29 x",
    ),
    ({"names": ("<image>", "<|a|>", "<fake_token_around_image>")}, "not token 261 but 260"),
    ({"family": "gpt2"}, "whose decoder"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_others_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(im.ExportError, match=message):
        im.export(composed(tmp_path, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_with_added_tokens_and_one_of_timm_are_refused(tmp_path: Path) -> None:
    model = composed(tmp_path)
    model.config = replace(model.config, tokens=None)
    with pytest.raises(im.ExportError, match="expected a model that was trained with tokens = "):
        im.export(model, tmp_path / "out")
    with pytest.raises(im.ExportError, match="holds SigLIP alone"):
        im.export(im.compose("tiny-vit", "tiny-lm", im.PixelShuffle()), tmp_path / "out")


def test_a_model_that_differs_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    whole = idefics3.tensors_of

    def other(*args: Any, **options: Any) -> Any:
        tensors = whole(*args, **options)
        name = "model.connector.modality_projection.proj.weight"
        return {**tensors, name: tensors[name] * 1.01}

    monkeypatch.setattr(idefics3, "tensors_of", other)
    with pytest.raises(im.ExportError, match="what was written is not the model"):
        im.export(composed(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
