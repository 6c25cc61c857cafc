"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, taken apart, say what Transformers' own classes say."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus import testing
from isthmus.config.file import run_from_mapping
from isthmus.config.model import RunConfig, TrainConfig
from isthmus.errors import CheckpointError, ConfigError, ImageError, PromptError
from isthmus.evaluation.runner import evaluate
from isthmus.generation.decode import generate
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.images import known_as
from isthmus.generation.prefix import boundary, fork
from isthmus.generation.rows import Encoded, Rows
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.backbones.native import patches_of
from isthmus.model.backbones.tiny_qwen_vl import (
    FAMILIES,
    IM_END,
    IMAGE,
    ROWS,
    SIDE,
    write_tiny_qwen_vl,
)
from isthmus.model.media.base import visual_of
from isthmus.model.media.native import NativeImages
from isthmus.prompts.templates import template_named
from isthmus.serving.conversation import Conversations, Turn
from isthmus.training.run import build

from .reference import TOLERANCE

NEW = 8
"""Tokens that are generated."""
SHOWN = "<|vision_start|><image><|vision_end|>"


@dataclass
class Case:
    """A repository in a folder, Transformers' model and processor of it, and ours."""

    folder: Path
    theirs: Any
    processor: Any
    ours: im.VisionLanguageModel

    def inputs(self, texts: list[str], images: Sequence[Any], side: str = "left") -> Any:
        """What the repository's own processor makes of prompts."""
        self.processor.tokenizer.padding_side = side
        own = [text.replace("<image>", "<|image_pad|>") for text in texts]
        return self.processor(
            images=list(images) or None, text=own, padding=True, return_tensors="pt"
        )

    def says(self, text: str, images: Sequence[Any]) -> str:
        """What the class itself generates."""
        inputs = self.inputs([text], images)
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        said = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        return str(said).rstrip("\ufffd").strip()


def case_of(folder: Path, family: str, **options: Any) -> Case:
    write_tiny_qwen_vl(folder, family, **options)
    return Case(
        folder,
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
        im.load(folder),
    )


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("qwen"), request.param)


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 8), (50, 70), (200, 31), (33, 400), (3, 5), (480, 640)])
def test_pixels_and_tokens_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    for shown in (image(0, size), image(0, size).convert("L")):
        inputs = case.inputs([SHOWN], [shown])
        pixels = case.ours.vision.preprocess(shown)
        native = case.ours.vision.shape.native
        assert native is not None
        assert torch.equal(patches_of(pixels[None], native, 2), inputs["pixel_values"])
        grid = [1, *(side // native.patch for side in pixels.shape[1:])]
        assert grid == inputs["image_grid_thw"][0].tolist()
        batch = case.ours.prepare([SHOWN], [[shown]])
        assert torch.equal(batch.input_ids, inputs["input_ids"])


def test_a_real_picture(case: Case, tmp_path: Path) -> None:
    """A photograph's way, from a file: smooth colours, JPEG, another mode."""
    ramp = np.add.outer(np.arange(300), np.arange(180)[:, None] * np.arange(1, 4)) % 256
    path = tmp_path / "picture.jpg"
    Image.fromarray(ramp.astype(np.uint8)).save(path, quality=90)
    inputs = case.inputs([f"{SHOWN}What is it?"], [Image.open(path)])
    for source in (str(path), path.read_bytes(), Image.open(path)):
        batch = case.ours.prepare([f"{SHOWN}What is it?"], [[source]])
        assert torch.equal(batch.input_ids, inputs["input_ids"])
        with torch.no_grad():
            got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one": ([f"{SHOWN}What is it?"], [[image(1)]]),
    "several": (
        [f"{SHOWN}{SHOWN}Which? this {SHOWN}Now?"],
        [[image(1), image(2, (40, 90)), image(3)]],
    ),
    "mixed": (
        [f"{SHOWN}a", "no image", f"b {SHOWN} and {SHOWN} in a longer text", "<image>x"],
        [[image(1)], [], [image(2, (90, 33)), image(3, (16, 16))], [image(4, (100, 20))]],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_class_s_own(case: Case, name: str, side: str) -> None:
    texts, images = BATCHES[name]
    inputs = case.inputs(texts, [i for own in images for i in own], side)
    batch = case.ours.prepare(texts, images, padding_side=side)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    with torch.no_grad():
        got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
    assert got.shape == (*batch.input_ids.shape, ROWS)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    # images count, each in its own place
    sizes = [[(i.height, i.width) for i in own] for own in images]
    others = [[image(9, size) for size in own] for own in sizes]
    with torch.no_grad():
        moved = case.ours(case.ours.prepare(texts, others, padding_side=side)).logits[real]
    assert (moved - got[real]).abs().max() > 1e-2


def test_text_alone_is_the_bare_decoder_s_bit_for_bit(case: Case) -> None:
    batch = case.ours.prepare(["Only words, no image.", "Fewer."], padding_side="right")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    places = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = case.theirs(**inputs, position_ids=places).logits
        assert torch.equal(case.ours(batch).logits, expected)
    testing.check_text_is_untouched(case.ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head(tmp_path: Path, family: str) -> None:
    case = case_of(tmp_path, family, tie_word_embeddings=True)
    assert case.ours.language.output_embedding.weight is case.ours.language.input_embedding.weight
    inputs = case.inputs([f"{SHOWN}a"], [image(1)])
    batch = case.ours.prepare([f"{SHOWN}a"], [[image(1)]])
    with torch.no_grad():
        expected = case.theirs(**inputs).logits
        torch.testing.assert_close(case.ours(batch).logits, expected, rtol=0, atol=TOLERANCE)


def test_earlier_layers_in_any_order(tmp_path: Path) -> None:
    """Qwen3-VL's list of layers need not rise."""
    from isthmus.model.backbones import tiny_qwen_vl

    name, text, vision = FAMILIES["qwen3_vl"]
    turned = {**vision, "deepstack_visual_indexes": [2, 0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_qwen_vl.FAMILIES, "qwen3_vl", (name, text, turned))
        case = case_of(tmp_path, "qwen3_vl")
    inputs = case.inputs([f"{SHOWN}a"], [image(1)])
    batch = case.ours.prepare([f"{SHOWN}a"], [[image(1)]])
    with torch.no_grad():
        expected = case.theirs(**inputs).logits
        torch.testing.assert_close(case.ours(batch).logits, expected, rtol=0, atol=TOLERANCE)


def test_the_parts_stand_alone(case: Case) -> None:
    name = f"hf:{case.folder}"
    language = im.load_language(name)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(language.model(ids).logits, case.theirs(input_ids=ids).logits)
    encoder = im.load_vision(name)
    pixels = torch.randn(2, 3, 2 * SIDE, 3 * SIDE)
    with torch.no_grad():
        visual = visual_of(case.ours, list(pixels))
        assert torch.equal(torch.stack(visual), case.ours.connector(encoder(pixels)))
    assert not any(hasattr(m, "rope_deltas") for m in case.ours.modules())
    # the merger's weights are the connector's, and nobody else's
    own = {p.data_ptr() for p in case.ours.connector.parameters()}
    assert not own & {p.data_ptr() for p in case.ours.vision.parameters()}


# --- generation -----------------------------------------------------------------------------------


def prompts(case: Case) -> list[im.Prompt]:
    """Prompts of the chat template, with demonstrations, several images, and none."""
    template = template_named("chat", case.ours.language.tokenizer)
    shots = [im.Example(image(10 + i, (30 + 20 * i, 60)), f"Number {i}?", f"{i}") for i in range(2)]
    return [
        template([], im.Example(image(1), "What is it?")),
        template(shots, im.Example(image(2, (90, 40)), "Number 5?")),
        template(shots, im.Example(image(3), "Number 6, which is longer?")),
        template([], im.Example((image(4), image(5, (20, 20))), "Which of them?")),
        template([], im.Example((), "What is 1 + 1?")),
    ]


def test_prompts_are_those_of_the_processor(case: Case) -> None:
    shown = [image(1), image(2)]
    turns = [
        Turn("user", (shown[0], "What is it?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", (shown[1], "And this?")),
    ]
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}
                for p in turn.parts
            ],
        }
        for turn in turns
    ]
    made = Conversations(case.ours).form(turns).prompt(turns)
    expected = case.processor.apply_chat_template(messages, add_generation_prompt=True)
    assert made.text.replace("<image>", "<|image_pad|>") == expected
    batch = case.ours.prepare([made.spans], [shown])
    assert torch.equal(batch.input_ids, case.inputs([expected], shown)["input_ids"])
    assert case.ours.special_tokens.end_id == IM_END


def test_greedy_texts_are_the_class_s_own(case: Case) -> None:
    engine = im.Engine(case.ours, batch_size=3)
    asked = prompts(case)
    expected = [case.says(p.text, p.images) for p in asked]
    assert len({*expected}) > 2
    for _ in range(2):  # the second time the shared prefix is there
        made = engine.generate(asked, max_new_tokens=NEW)
        assert [m.completions[0].text for m in made] == expected
    assert made[1].cached_tokens > 30
    batch = case.ours.prepare([p.spans for p in asked], [list(p.images) for p in asked])
    for row, text in zip(generate(case.ours, batch, max_new_tokens=NEW), expected, strict=True):
        assert case.ours.special_tokens.decode(row).rstrip("\ufffd").strip() == text


def test_beams_are_the_class_s_own(case: Case) -> None:
    text, shown = f"{SHOWN}What is it?", [image(1)]
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    ids = generate(case.ours, case.ours.prepare([text], [shown]), **options)
    inputs = case.inputs([text], shown)
    theirs = case.theirs.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(ids, theirs)


def test_the_server_says_what_the_class_says(case: Case) -> None:
    asked = prompts(case)
    expected = [case.says(p.text, p.images) for p in asked]
    with ServingEngine(case.ours, max_batch=3, prefill_tokens=20) as engine:
        tickets = [
            engine.submit(GenerationRequest(prompt=p, max_new_tokens=NEW)) for p in asked * 2
        ]
        texts = [ticket.result()[0].rstrip("\ufffd").strip() for ticket in tickets]
        assert engine.statistics().rows_together
    assert texts == expected * 2


def test_a_second_turn_goes_on_from_kept_states(case: Case) -> None:
    """The offset behind an image is there again with the states."""
    template = template_named("chat", case.ours.language.tokenizer)
    first = template([], im.Example(image(1), "What is it?"))
    with ServingEngine(case.ours) as engine:
        text, _, _ = engine.submit(GenerationRequest(prompt=first, max_new_tokens=NEW)).result()
        turns = [im.Example(image(1), "What is it?", text.strip() or "x")]
        second = template(turns, im.Example(image(2, (20, 90)), "And this?"))
        ticket = engine.submit(GenerationRequest(prompt=second, max_new_tokens=NEW))
        said, _, finished = ticket.result()
    assert finished.usage.cached_tokens > len(first.text) // 2
    assert said.rstrip("\ufffd").strip() == case.says(second.text, second.images)


@torch.no_grad()
def test_a_prefix_may_end_anywhere_but_in_an_image(case: Case) -> None:
    """Among these places: right before an image, and right behind it."""
    text = f"so {SHOWN}a{SHOWN}bc"
    prompt = im.Prompt(text, (image(1, (20, 30)), image(2, (30, 16))))
    encoded, contents = PromptEncoder(case.ours)(prompt)
    opened = {h: case.ours.media[0].open(case.ours, c) for h, c in contents.items()}
    visual = dict(zip(opened, visual_of(case.ours, opened.values()), strict=True))
    whole = case.ours(case.ours.prepare([text], [list(prompt.images)])).logits[0, -1]
    ends = {boundary(encoded.symbols, n, encoded.layouts) for n in range(1, len(encoded.ids))}
    behind = [n for n in ends if encoded.ids[n - 1] == IMAGE]
    assert len(behind) == 2
    assert len(ends) > 10
    for end in sorted(ends):
        start = Rows(case.ours, [encoded.first(end)], visual)
        start.prefill()
        rest = Rows(case.ours, [encoded], visual, fork(start.states, end), end)
        torch.testing.assert_close(rest.prefill()[0], whole, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_rows_of_one_prefix_go_on_each_from_its_own_place(case: Case) -> None:
    """Rows with and without images behind a shared one, decoded side by side and as a tree."""
    head = f"{SHOWN}same "
    tails = [f"{SHOWN}a", "b", f"cc {SHOWN}{SHOWN}", "dd dd"]
    own = [[image(2, (50, 20))], [], [image(3), image(4, (16, 40))], []]
    encode = PromptEncoder(case.ours)
    made = [
        encode(im.Prompt(head + tail, (image(1, (20, 60)), *more)))
        for tail, more in zip(tails, own, strict=True)
    ]
    opened = {h: case.ours.media[0].open(case.ours, c) for _, d in made for h, c in d.items()}
    visual = dict(zip(opened, visual_of(case.ours, opened.values()), strict=True))
    encoded: list[Encoded] = [prompt for prompt, _ in made]
    shared = encoded[0].first(len(case.ours.encode_text(head, encoded[0].layouts[:1])))
    start = Rows(case.ours, [shared], visual)
    start.prefill()
    past = len(shared.ids)
    rows = Rows(case.ours, encoded, visual, fork(start.states, past, len(encoded)), past)
    found = [rows.prefill()]
    nodes = torch.tensor([[65, 66, 67]] * len(encoded))
    sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool().expand(len(encoded), -1, -1)
    tree = rows.branch(0, 1), rows
    found.append(rows.append(nodes, torch.tensor([[0, 1, 1]] * len(encoded)), sees))
    step = tree[0].step(torch.tensor([65]))
    for row, (tail, more) in enumerate(zip(tails, own, strict=True)):
        images = [image(1, (20, 60)), *more]
        for ids, got in (
            ("", found[0][row]),
            ("A", found[1][row, 0]),
            ("AB", found[1][row, 1]),
            ("AC", found[1][row, 2]),
            *([("A", step[0])] if row == 0 else []),
        ):
            batch = case.ours.prepare([head + tail + ids], [images])
            expected = case.ours(batch, last=1).logits[0, -1]
            torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def naive_scores(case: Case, prompt: im.Prompt, answers: list[str]) -> list[float]:
    """One forward pass of Transformers' class for each answer."""
    scores = []
    start = case.inputs([prompt.text], prompt.images)["input_ids"].shape[1]
    for answer in answers:
        inputs = case.inputs([prompt.text + answer], prompt.images)
        own = inputs["input_ids"][0, start:]
        assert own.tolist() == list(answer.encode())
        logits: Tensor = case.theirs(**inputs).logits[0, start - 1 : -1]
        scores.append(-float(F.cross_entropy(logits, own, reduction="sum")))
    return scores


def test_closed_answers_are_scored_as_by_the_class(case: Case) -> None:
    answers = [" cat", " cats", " dog", " a"]
    asked = prompts(case)
    engine = im.Engine(case.ours, batch_size=2)
    scored = engine.score(asked, answers)
    assert engine._trees
    for prompt, own in zip(asked, scored, strict=True):
        expected = naive_scores(case, prompt, answers)
        assert own.logprobs == pytest.approx(expected, abs=1e-4)


# --- the bounds on an image's size ----------------------------------------------------------------


def test_bounds_are_the_processor_s_and_enter_the_hash(case: Case) -> None:
    shown, few = image(1, (200, 200)), 12 * SIDE**2
    with ServingEngine(case.ours) as engine:
        before, _ = engine._encode(im.Prompt(SHOWN, (shown,)))
    model = copy.copy(case.ours)
    model.media = [NativeImages(max_pixels=few).build(model), *case.ours.media]
    pixels = model.media[0].open(model, shown)
    size = {"shortest_edge": 2 * SIDE**2, "longest_edge": few}
    theirs = case.processor.image_processor(images=shown, size=size, return_tensors="pt")
    native = case.ours.vision.shape.native
    assert native is not None
    assert torch.equal(patches_of(pixels[None], native, 2), theirs["pixel_values"])
    assert pixels[0].numel() <= few < case.ours.vision.preprocess(shown)[0].numel()
    after, _ = PromptEncoder(model)(im.Prompt(SHOWN, (shown,)))
    assert before.images != after.images
    assert len(before.ids) > len(after.ids)
    assert known_as(model, shown)[0] == after.images[0]
    with pytest.raises(ConfigError, match="smaller number first"):
        NativeImages(min_pixels=100, max_pixels=10)


def test_bounds_are_saved_with_a_strip(case: Case, tmp_path: Path) -> None:
    bound = NativeImages(min_pixels=4 * SIDE**2, max_pixels=8 * SIDE**2)
    config = replace(case.ours.config, media=(bound,))
    model = build(RunConfig(model=config, train=TrainConfig(), data=()), "cpu").eval()
    assert isinstance(model, im.VisionLanguageModel)
    again = im.load(im.save(model, tmp_path))
    assert again.config.media == (bound,)
    layout = again.media[0].layout(again, again.media[0].open(again, image(1, (200, 200))))
    assert layout.grid == (2, 2)


def test_what_it_cannot_see_is_refused(case: Case) -> None:
    with pytest.raises(ImageError, match="multiples of 8"):
        case.ours.prepare(["<image>"], [[torch.zeros(3, 20, 16)]])
    with pytest.raises(ImageError, match="1 x 300"):
        case.ours.prepare(["<image>"], [[image(0, (300, 1))]])
    clip = case.ours.prepare(["<image>"], [[(image(0), image(1))]])
    with pytest.raises(PromptError, match="a clip of 2 frames"):
        case.ours(clip)
    with pytest.raises(ImageError, match="clip"):
        case.ours.prepare(["<image>"], [[(image(0), image(1, (10, 90)))]])
    with pytest.raises(ConfigError, match="own resolution"):
        im.compose("tiny-vit", "tiny-lm", im.MLP(), media=[NativeImages()])


# --- the rest of the package ----------------------------------------------------------------------


def test_it_answers_and_is_evaluated(case: Case) -> None:
    answer = im.ask(case.ours, image(1), "What is it?", max_new_tokens=NEW)
    assert answer.text == case.says(prompts(case)[0].text, [image(1)])
    for task, shots in (("parity", 2), ("fast-binding-2", 1)):
        [row] = evaluate(case.ours, task, shots=[shots], limit=4).rows
        assert row.n == 4
    assert "visual tokens" in str(case.ours.summary())


CHECKS = (
    testing.check_evaluation_mode,
    testing.check_copies,
    testing.check_language_model_is_free,
    testing.check_sight,
    testing.check_padding,
    testing.check_packing,
    testing.check_decoding,
    testing.check_gradient_checkpointing,
    testing.check_save_and_load,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_passes_the_suite(case: Case, check: Any) -> None:
    check(copy.deepcopy(case.ours))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_moves_the_strip_alone(tmp_path: Path, family: str) -> None:
    testing.check_training_step(im.load(write_tiny_qwen_vl(tmp_path, family)))


def test_it_trains_on_images_of_any_size(case: Case, tmp_path: Path) -> None:
    for number in range(4):
        image(number, (20 + 15 * number, 40)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    model = im.load(case.folder)
    model.config = replace(model.config, template="plain")
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=3, batch_size=4, pack=128, **options)
    im.train(model, tmp_path, config, tmp_path / "run", quiet=True)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[0] for n in moved} == {"connector"}
    assert len(moved) == len(list(model.connector.parameters()))
    again = im.load(tmp_path / "run")
    batch = model.prepare([f"{SHOWN}Output:"], [[image(1)]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def trained(case: Case) -> im.VisionLanguageModel:
    """The model, its connector moved on."""
    model = im.load(case.folder)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_strip_over_it_is_saved_alone_and_loads_again(case: Case, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = trained(case)
    saved = im.save(model, tmp_path / "strip")
    again = im.load(saved)
    assert again.config == model.config
    batch = model.prepare([f"{SHOWN}a"], [[image(1)]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)
        assert not torch.equal(case.ours(batch).logits, model(batch).logits)
    assert all(n.startswith("connector.") for n in load_file(saved / "model.safetensors"))
    # a training configuration starts from it
    config = RunConfig(model=model.config, train=TrainConfig(init=str(saved)), data=())
    begun = build(config, "cpu").eval()
    assert isinstance(begun, im.VisionLanguageModel)
    with torch.no_grad():
        assert torch.equal(begun(batch).logits, model(batch).logits)


def test_a_strip_refuses_another_model_s_weights(tmp_path: Path) -> None:
    write_tiny_qwen_vl(tmp_path / "model")
    saved = im.save(im.load(tmp_path / "model"), tmp_path / "strip")
    write_tiny_qwen_vl(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="other weights"):
        im.load(saved)


def test_lora_and_half_precision(case: Case, tmp_path: Path) -> None:
    model = im.load(case.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = model.prepare([f"{SHOWN}a"], [[image(1)]])
    assert model(batch).logits.isfinite().all()
    name = f"hf:{case.folder}"
    tables: dict[str, Any] = {
        "template": "plain",
        "vision": {"name": name, "deepstack": case.ours.config.vision.deepstack},
        "language": {"name": name, "lora_rank": 2},
        "connector": {"type": "merger", **vars(case.ours.config.connector)},
        "fusion": {"type": "inline", "deepstack": case.ours.config.fusion.deepstack},
        "media": [{"type": "native", "max_pixels": 16 * SIDE**2}],
        "tokens": {"image_id": IMAGE},
    }
    tuned = build(run_from_mapping(tables), "cpu").eval()
    assert isinstance(tuned, im.VisionLanguageModel)
    again = im.load(im.save(tuned, tmp_path))
    with torch.no_grad():
        assert torch.equal(again(batch).logits, tuned(batch).logits)


def test_the_tool_for_real_weights_compares_the_same(tmp_path: Path) -> None:
    write_tiny_qwen_vl(tmp_path, "qwen3_vl")
    tool = Path(__file__).parents[2] / "tools" / "try_released.py"
    command = [sys.executable, str(tool), f"hf:{tmp_path}", "--tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("hf:")]
    assert [line.endswith("equal") for line in lines] == [True] * 11, done.stdout + done.stderr
    assert done.returncode == 0
