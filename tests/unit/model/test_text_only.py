"""A language model alone: prompts, engine and tasks run on it, images and saving do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.errors import CheckpointError, PromptError
from isthmus.evaluation.runner import evaluate
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.join import bare_language_model
from isthmus.model.vlm import VisionLanguageModel


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a causal language model, as Transformers saves it."""
    torch.manual_seed(0)
    tiny_language_model("qwen3").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def model(saved: Path) -> VisionLanguageModel:
    return im.load(f"hf:{saved}")


def test_its_logits_are_the_bare_models(model: VisionLanguageModel, saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(saved)
    batch = model.prepare(["Q: 2 + 3?\nA:"])
    assert torch.equal(model(batch).logits, bare(input_ids=batch.input_ids).logits)
    assert not model.trained_parameters()


def test_it_answers_in_gpt3s_setting(model: VisionLanguageModel) -> None:
    shots = [im.Example((), "1 + 1?", "2")]
    answer = im.ask(model, (), "2 + 3?", shots=shots, max_new_tokens=2)
    assert answer.prompt == "Q: 1 + 1?\nA: 2\n\nQ: 2 + 3?\nA:"


def test_tasks_of_text_run_on_it(model: VisionLanguageModel) -> None:
    [row] = evaluate(model, "parity", shots=[2], limit=4).rows
    assert row.n == 4


def test_it_refuses_images_and_saving(model: VisionLanguageModel, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(PromptError, match="sees no images"):
        im.ask(model, image, "What is it?")
    with pytest.raises(PromptError, match="sees no images"):
        im.Engine(model).score([im.Prompt("<image>", (image,))], ["a"])
    with pytest.raises(CheckpointError, match="no strip"):
        im.save(model, tmp_path / "out")


def test_an_object_will_do_too() -> None:
    language = tiny_language_model("gpt2")
    assert bare_language_model(language, tokenizer=byte_tokenizer()).text_only
