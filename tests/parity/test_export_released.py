"""A released LLaVA that was trained on goes out as a LLaVA: its class, its tokens, its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus.config.model import RunConfig, TokensConfig, TrainConfig
from isthmus.exporting.check import drawn
from isthmus.exporting.jinja import messages_of
from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.model.backbones.tiny_llava import IMAGE, ROWS, write_tiny_llava
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named
from isthmus.training.run import build

from .reference import TOLERANCE

WAYS: list[dict[str, Any]] = [
    {},
    {"vision": "siglip", "language": "qwen2"},
    {"vision": "siglip", "vision_feature_select_strategy": "default"},
    {"vision_feature_select_strategy": "full"},
    {"vision_feature_layer": 1},
    {"tie_word_embeddings": True},
    {"multimodal_projector_bias": False},
]


def moved(model: im.VisionLanguageModel) -> im.VisionLanguageModel:
    """As after training: whatever is trained is another."""
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(
        folder
    ).eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def assert_same(model: im.VisionLanguageModel, folder: Path, tolerance: float = TOLERANCE) -> None:
    """Ids, pixels, logits and texts of Transformers' own classes."""
    theirs, processor = loaded(folder)
    template = template_named(model.config.template, model.language.tokenizer)
    shot = Example(drawn((50, 70), 2), "This?", "a dog")
    for shots in ([], [shot]):
        query = Example(drawn((90, 60), 1), "What is it?")
        prompt = template(shots, query)
        batch = model.prepare([prompt.spans], [prompt.images])
        inputs = processor.apply_chat_template(
            messages_of(shots, query),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        assert torch.equal(inputs["input_ids"], batch.input_ids)
        assert torch.equal(inputs["pixel_values"], batch.pixels)
        expected, got = model(batch).logits, theirs(**inputs).logits
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
        assert expected.std() > 0.1
        made = theirs.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(made, skip_special_tokens=True)
        answer = im.ask(model, query.images, query.question, shots=shots, max_new_tokens=8, stop=())
        assert text.rstrip("\ufffd").strip() == answer.text


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_it_is_a_llava_again(options: dict[str, Any], tmp_path: Path) -> None:
    model = moved(im.load(write_tiny_llava(tmp_path / "released", **options)))
    found = im.export(model, tmp_path / "out")
    assert (found.architecture, found.difference) == ("LlavaForConditionalGeneration", 0.0)
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_nothing_but_the_projector_is_another(options: dict[str, Any], tmp_path: Path) -> None:
    """Every other tensor is the released one, and so is what its configuration says."""
    folder = write_tiny_llava(tmp_path / "released", **options)
    im.export(moved(im.load(folder)), tmp_path / "out")
    one, other = (loaded(f)[0] for f in (folder, tmp_path / "out"))
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if "multi_modal_projector" in n}
    for name in (
        "image_token_id",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "multimodal_projector_bias",
        "tie_word_embeddings",
    ):
        assert getattr(one.config, name) == getattr(other.config, name), name
    assert other.config.text_config.vocab_size == ROWS
    files = load_file(tmp_path / "out" / "model.safetensors")
    tied = options.get("tie_word_embeddings", False)
    assert ("language_model.lm_head.weight" in files) != tied


def test_its_tokenizer_and_chat_template_stay(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path / "released")
    im.export(moved(im.load(folder)), tmp_path / "out")
    one, other = (loaded(f)[1] for f in (folder, tmp_path / "out"))
    assert one.chat_template == other.chat_template
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    ends = loaded(tmp_path / "out")[0].generation_config.eos_token_id
    assert ends == [one.tokenizer.eos_token_id]  # and not the space behind its answers


def test_another_template_ends_as_its_text_does(tmp_path: Path) -> None:
    """A strip that was trained in "plain": our tags are the tokens that the vocabulary has."""
    model = im.load(write_tiny_llava(tmp_path / "released"))
    model.config = replace(model.config, template="plain")
    im.export(moved(model), tmp_path / "out")
    assert_same(model, tmp_path / "out")
    processor = loaded(tmp_path / "out")[1]
    shot, query = Example((), "1?", "2"), Example((), "3?")
    text = processor.apply_chat_template(messages_of([shot], query), add_generation_prompt=True)
    assert text == "Question: 1? Answer: 2</s>Question: 3? Answer:"


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_token_of_another_name(template: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[PICTURE]"]})
    assert tokenizer.convert_tokens_to_ids("[PICTURE]") == IMAGE
    folder = write_tiny_llava(tmp_path / "released", tokenizer=tokenizer)
    program = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(program.replace("<image>", "[PICTURE]"))
    model = moved(im.load(folder))
    model.config = replace(model.config, template=template)
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")
    assert loaded(tmp_path / "out")[1].image_token == "[PICTURE]"


def test_lora_over_it_is_merged(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path / "released")
    config = im.load(folder).config
    config = replace(config, language=replace(config.language, lora_rank=2))
    model = build(RunConfig(model=config, train=TrainConfig(), data=()), "cpu").eval()
    assert isinstance(model, im.VisionLanguageModel)
    im.export(moved(model), tmp_path / "out")
    assert_same(model, tmp_path / "out", tolerance=1e-4)  # sums in another order
    before, after = (loaded(f)[0].state_dict() for f in (folder, tmp_path / "out"))
    changed = {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])}
    assert {"q_proj", "down_proj", "linear_1"} <= changed


def test_a_strip_over_it_is_exported_by_its_folder(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path / "released")
    model = moved(im.load(folder))
    im.export(im.save(model, tmp_path / "strip"), tmp_path / "out")
    assert_same(model, tmp_path / "out")
    again = im.load(tmp_path / "out")  # and in again
    assert replace(again.config, vision=model.config.vision, language=model.config.language) == (
        model.config
    )
    batch = model.prepare(["USER: <image>\na"], [[drawn((40, 40), 1)]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)


def test_the_released_model_itself(tmp_path: Path) -> None:
    """By its folder and by its name; a folder of a language model alone is refused."""
    folder = write_tiny_llava(tmp_path / "released")
    for number, name in enumerate((str(folder), f"hf:{folder}")):
        out = tmp_path / f"out{number}"
        assert im.export(name, out).difference == 0.0
        assert_same(im.load(folder), out)


@pytest.mark.parametrize("to", ["transformers", "gguf"])
@pytest.mark.parametrize("own", [{"before": (5,)}, {"after": (5,)}, {"images_first": True}])
def test_tokens_around_images_are_refused(own: Any, to: Any, tmp_path: Path) -> None:
    """As Janus and BLIP-2 have them."""
    model = im.load(write_tiny_llava(tmp_path / "released"))
    model.config = replace(model.config, tokens=TokensConfig(image_id=IMAGE, **own))
    with pytest.raises(im.ExportError, match="it has tokens around its images, or images before"):
        im.export(model, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_lacks_the_token(tmp_path: Path) -> None:
    model = im.load(write_tiny_llava(tmp_path / "released"))
    model.special_tokens.image_id = 9999
    with pytest.raises(im.ExportError, match="has no token 9999, which stands for an image"):
        im.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
