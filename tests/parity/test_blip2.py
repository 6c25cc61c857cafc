"""A BLIP-2 that was taken apart says what Transformers' own class says."""

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
    Blip2Config,
    OPTConfig,
    T5Config,
)

import isthmus as im
from isthmus import testing
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.data.samples import tokenize
from isthmus.errors import ConfigError
from isthmus.generation.decode import generate
from isthmus.model.backbones.tiny_blip2 import IMAGE, LINE, QUERIES, START
from isthmus.model.backbones.tiny_blip2 import write_tiny_blip2 as write
from isthmus.prompts.templates import blip2
from isthmus.released.blip2 import Blip2

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

    def inputs(self, texts: list[str], images: list[Image.Image]) -> Any:
        """What the repository's own processor makes of prompts with an image each."""
        return self.processor(
            images=images, text=texts, padding=True, padding_side="right", return_tensors="pt"
        )

    def says(self, ids: Tensor, pixels: Tensor) -> str:
        """What the class itself generates."""
        made = self.theirs.generate(
            pixel_values=pixels, input_ids=ids, max_new_tokens=NEW, do_sample=False
        )
        new = made[0, ids.shape[1] :].tolist()
        return str(self.processor.tokenizer.decode([i for i in new if i != LINE])).rstrip("\ufffd")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("blip2"))


def case_of(folder: Path, **changes: Any) -> Case:
    write(folder, **changes)
    return Case(
        folder,
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
        im.load(folder, device="cpu"),
    )


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------


def test_what_it_becomes(case: Case) -> None:
    config = case.ours.config
    assert config.connector == im.QFormer(queries=QUERIES, depth=3, heads=2, width=16)
    assert config.vision.final_norm
    assert config.vision.keep_cls
    assert case.ours.vision.shape.tokens == 17
    assert config.template == "blip2"
    assert case.ours.language.end_ids() == [LINE]
    assert not list(case.ours.special_tokens.parameters())
    assert {n.split(".")[0] for n in case.ours.trained_parameters()} == {"connector"}
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = case.theirs.vision_model(pixels).last_hidden_state
        assert torch.equal(case.ours.vision(pixels), expected)
        tokens = case.theirs.get_image_features(pixels).pooler_output
        torch.testing.assert_close(case.ours.connector(expected), tokens, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (200, 31)])
def test_pixels_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    shown = image(0, size)
    theirs = case.inputs(["a"], [shown])["pixel_values"][0]
    assert torch.equal(case.ours.vision.preprocess(shown), theirs)


def test_a_photograph_is_the_processor_s(case: Case) -> None:
    shown = im.open_image(EXAMPLES / "cat.jpg")
    prompt = blip2([], im.Example(shown, "What is it?"))
    batch = case.ours.prepare([prompt.spans], [[shown]])
    inputs = case.inputs(["Question: What is it? Answer:"], [shown])
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert isinstance(batch.pixels, Tensor)
    assert torch.equal(batch.pixels, inputs["pixel_values"])


TEXTS = ["Question: What is it? Answer:", "", "a photo of", "Question: Is it <s>? Answer: no"]


def test_logits_are_the_class_s_own(case: Case) -> None:
    shown = [image(i) for i in range(len(TEXTS))]
    inputs = case.inputs(TEXTS, shown)
    batch = case.ours.prepare(
        [f"<image>{t}" for t in TEXTS], [[i] for i in shown], padding_side="right"
    )
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert batch.input_ids[1].tolist()[: QUERIES + 1] == [IMAGE] * QUERIES + [START]
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    with torch.no_grad():
        got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    # padded on the other side, the processor pads between images and texts; the logits are the same
    left = case.ours.prepare([f"<image>{t}" for t in TEXTS], [[i] for i in shown])
    with torch.no_grad():
        again = case.ours(left).logits[left.attention_mask.bool()]
    torch.testing.assert_close(again, expected[real], rtol=0, atol=TOLERANCE)
    other = case.ours.prepare([f"<image>{t}" for t in TEXTS], [[image(9)] for _ in shown])
    with torch.no_grad():
        moved = case.ours(other).logits[left.attention_mask.bool()] - again
    assert moved.abs().max() > 1e-2


def test_several_images_and_none(case: Case) -> None:
    """Which the processor does not make; the class takes their tokens."""
    text, shown = "<image><image>Question: Which? Answer:", [image(1), image(2)]
    batch = case.ours.prepare([text], [shown])
    ids = [IMAGE] * 2 * QUERIES + [START, *b"Question: Which? Answer:"]
    assert batch.input_ids.tolist() == [ids]
    pixels = case.inputs(["a", "a"], shown)["pixel_values"]
    with torch.no_grad():
        expected = case.theirs(input_ids=batch.input_ids, pixel_values=pixels).logits
        torch.testing.assert_close(case.ours(batch).logits, expected, rtol=0, atol=TOLERANCE)
        # one that stands in the text does so where it is written
        later = case.ours.prepare(["<image>a<image>"], [shown])
        own = [[IMAGE] * QUERIES + [START, 97] + [IMAGE] * QUERIES]
        assert later.input_ids.tolist() == own
        expected = case.theirs(input_ids=later.input_ids, pixel_values=pixels).logits
        torch.testing.assert_close(case.ours(later).logits, expected, rtol=0, atol=TOLERANCE)
        words = case.ours.prepare(["Only words."])
        assert words.input_ids.tolist() == [[START, *b"Only words."]]
        bare = case.theirs.language_model(input_ids=words.input_ids).logits
        assert torch.equal(case.ours(words).logits, bare)
    testing.check_text_is_untouched(case.ours)


@pytest.mark.parametrize("changes", [{"cross_attention_frequency": 1}, {"num_hidden_layers": 1}])
def test_other_q_formers(tmp_path: Path, changes: dict[str, int]) -> None:
    other = case_of(tmp_path, **changes)
    shown = image(0)
    inputs = other.inputs(["a"], [shown])
    with torch.no_grad():
        got = other.ours(other.ours.prepare(["<image>a"], [[shown]])).logits
        torch.testing.assert_close(got, other.theirs(**inputs).logits, rtol=0, atol=TOLERANCE)


# --- generation -----------------------------------------------------------------------------------


def prompts() -> list[im.Prompt]:
    shots = [im.Example((), f"What is {i} + 1?", f"{i + 1}") for i in range(3)]
    several = im.Example((image(4), image(5)), "Which of them?")
    return [
        blip2([], im.Example(image(1), "What is it?")),
        blip2([], im.Example(image(2, (90, 40)), "")),
        blip2([im.Example(image(3), "Number 1?", "a")], im.Example((), "Number 5?")),
        blip2([im.Example(image(3), "Number 1?", "a")], im.Example((), "Number 6, longer?")),
        blip2(shots, im.Example(image(6), "What is 4 + 1?")),
        blip2([], several),
    ]


def test_greedy_texts_are_the_class_s_own(case: Case) -> None:
    asked, expected = prompts(), []
    for prompt in asked:
        batch = case.ours.prepare([prompt.spans], [list(prompt.images)])
        pixels = case.inputs(["a"] * len(prompt.images), list(prompt.images))["pixel_values"]
        expected.append(case.says(batch.input_ids, pixels))
        ids = generate(case.ours, batch, max_new_tokens=NEW)[0]
        own = case.ours.special_tokens.decode(ids[ids != LINE]).rstrip("\ufffd")
        assert own == expected[-1]
    assert len({*expected}) > 3
    engine = im.Engine(case.ours, batch_size=3)
    for _ in range(2):  # the second time the shared prefix is there
        made = engine.generate(asked, max_new_tokens=NEW)
        assert [m.completions[0].text for m in made] == [e.strip() for e in expected]
    assert made[2].cached_tokens > 10


def test_prompts_are_the_processor_s(case: Case) -> None:
    shown = image(1)
    prompt = prompts()[0]
    assert prompt.text == "<image>Question: What is it? Answer:"
    inputs = case.inputs(["Question: What is it? Answer:"], [shown])
    assert case.ours.encode_text(prompt.spans, 1) == inputs["input_ids"][0].tolist()
    answer = im.ask(case.ours, shown, "What is it?", max_new_tokens=NEW)
    assert answer.text == case.says(inputs["input_ids"], inputs["pixel_values"]).strip()
    caption = im.ask(case.ours, shown, "", max_new_tokens=NEW)
    inputs = case.inputs([""], [shown])
    assert caption.text == case.says(inputs["input_ids"], inputs["pixel_values"]).strip()


@torch.no_grad()
def test_closed_answers_are_scored_as_by_the_class(case: Case) -> None:
    answers = [" cat", " cats", " dog", " a"]
    asked = prompts()
    scored = im.Engine(case.ours, batch_size=2).score(asked, answers)
    for prompt, own in zip(asked, scored, strict=True):
        start = case.ours.encode_text(prompt.spans, len(prompt.images))
        pixels = case.inputs(["a"] * len(prompt.images), list(prompt.images))["pixel_values"]
        for answer, got in zip(answers, own.logprobs, strict=True):
            added = torch.tensor(list(answer.encode()))
            ids = torch.cat([torch.tensor(start), added])[None]
            logits = case.theirs(input_ids=ids, pixel_values=pixels).logits[0, len(start) - 1 : -1]
            assert got == pytest.approx(
                -float(F.cross_entropy(logits, added, reduction="sum")), abs=1e-4
            )


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
    ids = case.ours.encode_text(blip2([], im.Example(image(1), "What is it?")).spans, 1)
    sample = tokenize(case.ours, Record.of(image(1), "What is it?", "a cat"))
    assert sample.ids == [*ids, *b" a cat\n"]
    assert sample.learned == [False] * len(ids) + [True] * 7
    words = tokenize(case.ours, Record((im.Example((), "What?", "a cat"),)))
    assert words.ids[0] == START
    cut = tokenize(case.ours, Record.of(image(1), "What is it?", "a cat"), max_length=len(ids) + 3)
    assert cut.ids == [*ids, *b" a "]


def test_it_trains(case: Case, tmp_path: Path) -> None:
    for number in range(4):
        image(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    model = im.load(case.folder, device="cpu")
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=3, batch_size=4, **options)
    im.train(model, tmp_path, config, tmp_path / "run", quiet=True)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"connector"}
    again = im.load(tmp_path / "run", device="cpu")
    assert again.config.tokens == model.config.tokens
    batch = model.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def test_a_part_can_be_had_alone(case: Case) -> None:
    name = f"hf:{case.folder}"
    encoder = im.load_vision(name)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = case.theirs.vision_model(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(encoder(pixels), case.theirs.vision_model(pixels).last_hidden_state)
        plain = im.load_vision(name, final_norm=False, keep_cls=False)
        assert torch.equal(plain(pixels), states[-1][:, 1:])
    assert im.load_language(name).end_ids() == [LINE]


def test_the_tool_for_real_weights_compares_the_same(case: Case) -> None:
    tool = Path(__file__).parents[2] / "tools" / "try_released.py"
    command = [sys.executable, str(tool), f"hf:{case.folder}", "--tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("hf:")]
    assert [line.endswith("equal") for line in lines] == [True] * 4, done.stdout + done.stderr
    assert done.returncode == 0


# --- refused --------------------------------------------------------------------------------------


def test_what_our_parts_lack_is_named() -> None:
    def config(**changes: Any) -> Blip2Config:
        return Blip2Config(**{"image_token_index": IMAGE, "text_config": OPTConfig(), **changes})

    assert Blip2.plan(config()).image_id == IMAGE
    wrong: list[tuple[Blip2Config, str]] = [
        (config(text_config=T5Config()), r'model "t5", an encoder and a decoder.*blip2-opt-2\.7b'),
        (config(image_token_index=None), "names no token for images"),
        (config(qformer_config={"hidden_act": "relu"}), "hidden_act = relu: expected gelu"),
        (config(qformer_config={"layer_norm_eps": 1e-5}), "layer_norm_eps = 1e-05"),
        (config(qformer_config={"intermediate_size": 8}), "intermediate_size = 8: expected 3072"),
    ]
    for refused, message in wrong:
        with pytest.raises(ConfigError, match=message):
            Blip2.plan(refused)


def test_a_variant_with_t5_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    config = Blip2Config(image_token_index=IMAGE, text_config=T5Config())
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    for load in (im.load, lambda folder: im.load_language(f"hf:{folder}")):
        with pytest.raises(ConfigError, match="an encoder and a decoder"):
            load(tmp_path)


def test_half_precision(case: Case) -> None:
    model = im.load(case.folder, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(model.prepare(["<image>a"], [[image(1)]])).logits.isfinite().all()
