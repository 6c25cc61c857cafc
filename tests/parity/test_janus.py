"""A Janus that was taken apart says what Transformers' own class says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    JanusConfig,
)

import isthmus as im
from isthmus import testing
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.data.samples import tokenize
from isthmus.errors import ConfigError
from isthmus.generation.decode import generate
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.backbones.tiny_janus import BEGIN, IMAGE, PATCHES, STOP
from isthmus.model.backbones.tiny_janus import write_tiny_janus as write
from isthmus.prompts.templates import template_named
from isthmus.released.janus import Janus

from .reference import TOLERANCE

NEW = 8
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Case:
    """A repository in a folder, Transformers' model and processor of it, and ours."""

    folder: Path
    theirs: Any
    processor: Any
    ours: im.VisionLanguageModel

    def inputs(self, texts: list[str], images: list[Image.Image], side: str = "right") -> Any:
        """What the repository's own processor makes of prompts."""
        return self.processor(
            images=images or None,
            text=texts,
            padding=True,
            padding_side=side,
            return_tensors="pt",
        )

    def says(self, inputs: Any) -> str:
        """What the class itself generates."""
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True)).rstrip("\ufffd")


def case_of(folder: Path, **options: Any) -> Case:
    write(folder, **options)
    return Case(
        folder,
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
        im.load(folder, device="cpu"),
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("janus"))


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------


def test_what_it_becomes(case: Case) -> None:
    config = case.ours.config
    assert config.connector == im.MLP(depth=2)
    assert config.vision.final_norm
    assert config.tokens is not None
    assert (config.tokens.before, config.tokens.after) == ((BEGIN,), (STOP,))
    assert case.ours.layout.written(IMAGE) == [BEGIN, *[IMAGE] * PATCHES, STOP]
    assert not any("vqmodel" in name for name, _ in case.ours.named_parameters())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = case.theirs.model.vision_model(pixels).last_hidden_state
        assert torch.equal(case.ours.vision(pixels), expected)
        tokens = case.theirs.model.get_image_features(pixels).pooler_output
        assert torch.equal(case.ours.connector(expected), tokens)


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (200, 31), (33, 400)])
def test_pixels_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    shown = image(0, size)
    theirs = case.inputs(["<image_placeholder>"], [shown])["pixel_values"][0]
    assert torch.equal(case.ours.vision.preprocess(shown), theirs)


def test_a_photograph_is_the_processor_s(case: Case) -> None:
    shown = im.open_image(EXAMPLES / "cat.jpg")
    template = template_named("chat", case.ours.language.tokenizer)
    prompt = template([], im.Example(shown, "What is it?"))
    asked = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = case.processor.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True
    )
    inputs = case.inputs([text], [shown])
    batch = case.ours.prepare([prompt.spans], [[shown]])
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert isinstance(batch.pixels, Tensor)
    assert torch.equal(batch.pixels, inputs["pixel_values"])
    answer = im.ask(case.ours, EXAMPLES / "cat.jpg", "What is it?", max_new_tokens=NEW)
    assert answer.text == case.says(inputs).strip()


SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.\n\n"
)
BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one": (["<|User|>: <image>\nWhat is it?\n\n<|Assistant|>:"], [[image(1)]]),
    "several": (
        ["<image>\n<image>\nWhich? a <image>b"],
        [[image(1), image(2, (40, 90)), image(3)]],
    ),
    "mixed": (
        ["<image>a", "no image", "b <image> and <image> in a longer text", "<image>"],
        [[image(1)], [], [image(2, (90, 33)), image(3)], [image(4, (32, 32))]],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_class_s_own(case: Case, name: str, side: str) -> None:
    texts, images = BATCHES[name]
    theirs = [t.replace("<image>", "<image_placeholder>") for t in texts]
    inputs = case.inputs(theirs, [i for own in images for i in own], side)
    batch = case.ours.prepare([SYSTEM + t for t in texts], images, padding_side=side)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    if side == "left":  # as `generate` does; `forward` alone counts padding as positions
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    shown = [[image(9) for _ in own] for own in images]
    other = case.ours.prepare([SYSTEM + t for t in texts], shown, padding_side=side)
    with torch.no_grad():
        assert (case.ours(other).logits[real] - got[real]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"depth": 3},
        {"use_qk_norm": False, "attention_bias": False},
        {"system": False},
    ],
    ids=str,
)
def test_every_supported_option(tmp_path: Path, options: dict[str, Any]) -> None:
    other = case_of(tmp_path, **options)
    template = template_named("chat", other.ours.language.tokenizer)
    prompt = template([], im.Example(image(1), "What?"))
    text = "<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:"
    inputs = other.inputs([text], [image(1)])
    batch = other.ours.prepare([prompt.spans], [[image(1)]])
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    with torch.no_grad():
        got, expected = other.ours(batch).logits, other.theirs(**inputs).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_text_alone_is_the_bare_decoder_s_bit_for_bit(case: Case) -> None:
    batch = case.ours.prepare(["Only words, no image."])
    with torch.no_grad():
        assert torch.equal(case.ours(batch).logits, case.theirs(input_ids=batch.input_ids).logits)
    testing.check_text_is_untouched(case.ours)


# --- generation -----------------------------------------------------------------------------------


def prompts(case: Case) -> list[im.Prompt]:
    template = template_named("chat", case.ours.language.tokenizer)
    shots = [im.Example(image(10 + i), f"Number {i}?", f"{i * 7}") for i in range(2)]
    return [
        template([], im.Example(image(1), "What is it?")),
        template(shots, im.Example(image(2, (90, 40)), "Number 5?")),
        template(shots, im.Example(image(3), "Number 6, which is longer?")),
        template([], im.Example((image(4), image(5)), "Which of them?")),
        template([], im.Example((), "What is 1 + 1?")),
    ]


def inputs_of(case: Case, prompt: im.Prompt) -> Any:
    """What the processor makes of a prompt, which it heads itself."""
    assert prompt.text.startswith(SYSTEM)
    text = prompt.text.removeprefix(SYSTEM).replace("<image>", "<image_placeholder>")
    return case.inputs([text], list(prompt.images))


def test_greedy_texts_are_the_class_s_own(case: Case) -> None:
    asked = prompts(case)
    expected = [case.says(inputs_of(case, p)) for p in asked]
    assert len({*expected}) > 2
    engine = im.Engine(case.ours, batch_size=3)
    for _ in range(2):  # the second time the shared prefix is there
        made = engine.generate(asked, max_new_tokens=NEW)
        assert [m.completions[0].text for m in made] == [e.strip() for e in expected]
    assert made[1].cached_tokens > 30
    for prompt, text in zip(asked, expected, strict=True):
        batch = case.ours.prepare([prompt.spans], [list(prompt.images)])
        ids = generate(case.ours, batch, max_new_tokens=NEW)[0]
        assert case.ours.special_tokens.decode(ids).rstrip("\ufffd") == text
    with ServingEngine(case.ours, max_batch=3, prefill_tokens=40) as server:
        tickets = [server.submit(GenerationRequest(prompt=p, max_new_tokens=NEW)) for p in asked]
        assert [ticket.result()[0] for ticket in tickets] == expected


@torch.no_grad()
def test_closed_answers_are_scored_as_by_the_class(case: Case) -> None:
    answers = [" cat", " cats", " dog", " a"]
    asked = prompts(case)
    scored = im.Engine(case.ours, batch_size=2).score(asked, answers)
    for prompt, own in zip(asked, scored, strict=True):
        inputs = inputs_of(case, prompt)
        start = inputs["input_ids"]
        for answer, got in zip(answers, own.logprobs, strict=True):
            added = torch.tensor([list(answer.encode())])
            ids = torch.cat([start, added], dim=1)
            logits = case.theirs(input_ids=ids, pixel_values=inputs.get("pixel_values")).logits
            behind = logits[0, start.shape[1] - 1 : -1]
            expected = -float(F.cross_entropy(behind, added[0], reduction="sum"))
            assert got == pytest.approx(expected, abs=1e-4)


# --- the rest of the package ----------------------------------------------------------------------

CHECKS = (
    testing.check_evaluation_mode,
    testing.check_language_model_is_free,
    testing.check_sight,
    testing.check_padding,
    testing.check_packing,
    testing.check_gradient_checkpointing,
    testing.check_decoding,
    testing.check_save_and_load,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_passes_the_suite(case: Case, check: Any) -> None:
    check(case.ours)


def test_what_is_learned_stands_behind_the_prompt(case: Case) -> None:
    template = template_named("chat", case.ours.language.tokenizer)
    prompt = template([], im.Example(image(1), "What is it?"))
    ids = case.ours.encode_text(prompt.spans, 1)
    record = Record.of(image(1), "What is it?", "a cat")
    sample = tokenize(case.ours, record)
    assert sample.ids[: len(ids)] == ids
    learned = [i for i, learn in zip(sample.ids, sample.learned, strict=True) if learn]
    assert case.ours.special_tokens.decode(learned) == " a cat"


def test_it_trains(case: Case, tmp_path: Path) -> None:
    for number in range(4):
        image(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    model = im.load(case.folder, device="cpu")
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=3, batch_size=4, pack=512, **options)
    im.train(model, tmp_path, config, tmp_path / "run", quiet=True)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"connector"}
    again = im.load(tmp_path / "run", device="cpu")
    assert again.config.tokens == model.config.tokens
    batch = model.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def test_the_tool_for_real_weights_compares_the_same(case: Case) -> None:
    tool = Path(__file__).parents[2] / "tools" / "try_released.py"
    command = [sys.executable, str(tool), f"hf:{case.folder}", "--tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("hf:")]
    assert [line.endswith("equal") for line in lines] == [True] * 11, done.stdout + done.stderr
    assert done.returncode == 0


# --- refused --------------------------------------------------------------------------------------


def test_what_our_parts_lack_is_named() -> None:
    def config(vision: dict[str, Any], text: str = "llama", width: int = 2048) -> JanusConfig:
        return JanusConfig(
            vision_config=vision, text_config={"model_type": text, "hidden_size": width}
        )

    assert Janus.plan(config({})).image_id == 100581
    with pytest.raises(ConfigError, match="hidden_act = relu: expected gelu"):
        Janus.plan(config({"hidden_act": "relu"}))
    with pytest.raises(ConfigError, match="projection_dim = 2048: expected 1024"):
        Janus.plan(config({}, width=1024))
    with pytest.raises(ConfigError, match="model_type = qwen2: expected llama"):
        Janus.plan(config({}, "qwen2"))
