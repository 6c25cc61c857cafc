"""A LLaVA that was taken apart says what Transformers' own class says."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)

import isthmus as im
from isthmus import testing
from isthmus.config.model import RunConfig, TrainConfig
from isthmus.errors import CheckpointError, ConfigError, PromptError
from isthmus.evaluation.runner import evaluate
from isthmus.generation.decode import generate
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.backbones.released import read, read_together
from isthmus.model.backbones.span_tokens import SpanTokenizer
from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.model.backbones.tiny_llava import IMAGE, ROWS, write_tiny_llava
from isthmus.model.backbones.vocabulary_tokens import VocabularyTokens
from isthmus.prompts.prompt import Span
from isthmus.prompts.templates import template_named
from isthmus.serving.conversation import Conversations, Turn
from isthmus.training.run import build

from .reference import TOLERANCE

NEW = 8
"""Tokens that are generated."""


@dataclass
class Case:
    """A repository in a folder, Transformers' model and processor of it, and ours."""

    folder: Path
    theirs: Any
    processor: Any
    ours: im.VisionLanguageModel

    def inputs(self, texts: list[str], images: list[Image.Image], side: str = "right") -> Any:
        """What the repository's own processor makes of prompts."""
        self.processor.tokenizer.padding_side = side
        return self.processor(images=images or None, text=texts, padding=True, return_tensors="pt")

    def says(self, text: str, images: list[Image.Image]) -> str:
        """What the class itself generates."""
        inputs = self.inputs([text], images)
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True)).rstrip("\ufffd")


def case_of(folder: Path, **options: Any) -> Case:
    write_tiny_llava(folder, **options)
    return Case(
        folder,
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
        im.load(folder),
    )


@pytest.fixture(scope="module", params=["clip-llama", "siglip-qwen2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    vision, language = request.param.split("-")
    return case_of(tmp_path_factory.mktemp("llava"), vision=vision, language=language)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("llava"))


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (200, 31), (33, 400)])
def test_pixels_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    shown = image(0, size)
    theirs = case.inputs(["<image>"], [shown])["pixel_values"][0]
    assert torch.equal(case.ours.vision.preprocess(shown), theirs)
    grey = shown.convert("L")
    assert torch.equal(
        case.ours.vision.preprocess(grey), case.inputs(["<image>"], [grey])["pixel_values"][0]
    )


BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one": (["USER: <image>\nWhat is it? ASSISTANT:"], [[image(1)]]),
    "several": (
        ["USER: <image>\n<image>\nWhich? ASSISTANT: this USER: <image>\nNow? ASSISTANT:"],
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
    inputs = case.inputs(texts, [i for own in images for i in own], side)
    batch = case.ours.prepare(texts, images, padding_side=side)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    if side == "left":  # as `generate` does; `forward` alone counts padding as positions
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
    assert got.shape == (*batch.input_ids.shape, ROWS)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    # images count: other ones have other logits
    other = case.ours.prepare(texts, [[image(9) for _ in own] for own in images], padding_side=side)
    with torch.no_grad():
        moved = case.ours(other).logits[real] - got[real]
    assert moved.abs().max() > 1e-2


def test_text_alone_is_the_bare_decoder_s_bit_for_bit(case: Case) -> None:
    batch = case.ours.prepare(["Only words, no image.", "Fewer."], padding_side="right")
    with torch.no_grad():
        expected = case.theirs(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=(batch.attention_mask.cumsum(1) - 1).clamp(min=0),
        ).logits
        assert torch.equal(case.ours(batch).logits, expected)
    testing.check_text_is_untouched(case.ours)


@pytest.mark.parametrize(
    "options",
    [
        {"vision_feature_layer": -1},
        {"vision_feature_layer": 1},
        {"vision_feature_layer": [-2]},
        {"multimodal_projector_bias": False},
        {"vision_feature_select_strategy": "full"},
        {"vision": "siglip", "vision_feature_select_strategy": "default"},
        {"tie_word_embeddings": True},
        {"language": "mistral"},
    ],
    ids=str,
)
def test_every_supported_option(tmp_path: Path, options: dict[str, Any]) -> None:
    case = case_of(tmp_path, **options)
    whole = case.ours.vision(torch.zeros(1, 3, 32, 32)).shape[1]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text = "a<image>b<image>c"
    batch = case.ours.prepare([text], [list(pixels)])
    assert batch.input_ids.tolist()[0].count(IMAGE) == 2 * whole
    with torch.no_grad():
        expected = case.theirs(input_ids=batch.input_ids, pixel_values=pixels).logits
        got = case.ours(batch).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_the_parts_are_those_of_one_reading(llava: Case) -> None:
    name = f"hf:{llava.folder}"
    with read_together():
        whole = read(name)
        assert im.load_vision(name).model is whole.tower
        assert im.load_language(name).model is whole.language
        assert read(name) is whole
    assert read(name) is not whole


def test_a_part_can_be_had_alone(llava: Case) -> None:
    name = f"hf:{llava.folder}"
    encoder, language = im.load_vision(name), im.load_language(name)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = llava.theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(encoder(pixels), states[-2][:, 1:])
        ids = torch.tensor([[1, 2, 3, 4]])
        assert torch.equal(language.model(ids).logits, llava.theirs(input_ids=ids).logits)
    assert im.load_vision(name, feature_layer=-1, keep_cls=True).shape.tokens == 17
    assert torch.equal(
        encoder.preprocess(image(0)), llava.inputs(["<image>"], [image(0)])["pixel_values"][0]
    )
    # a strip of one's own between them
    model = im.compose(name, "tiny-lm", im.Linear())
    assert model.vision.config.feature_layer == -2
    testing.check_save_and_load(model)


# --- the tokens of its vocabulary -----------------------------------------------------------------


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama's: a space before every text, and so behind every special token."""
    symbols = ["<unk>", *"▁abcdefghijklmnopqrstuvwxyzQWUSERAITN?:.\n", "▁a", "is", "▁is"]
    names = {"<pad>": 256, "<s>": 257, "</s>": 258, "<image>": IMAGE}
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    core = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[("▁", "a"), ("i", "s"), ("▁", "is")], unk_token="<unk>"
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    filling = [f"<filling{i}>" for i in range(len(vocabulary), 256)]
    core.add_tokens(filling)
    core.add_special_tokens(list(names))
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )
    assert {t: made.convert_tokens_to_ids(t) for t in names} == names
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 257)]
    )
    return made


@pytest.mark.parametrize(
    "text",
    [
        "USER: <image>\nWhat is it? ASSISTANT:",
        "<image>is",
        "a <image> is",
        "<image><image> a\n<image>",
        "a is</s>is <image>\n",
    ],
)
def test_text_beside_an_image_is_tokenized_as_its_processor_does(tmp_path: Path, text: str) -> None:
    case = case_of(tmp_path, tokenizer=llama_tokenizer())
    shown = [image(i) for i in range(text.count("<image>"))]
    expected = case.inputs([text], shown)["input_ids"]
    got = case.ours.prepare([text], [shown]).input_ids
    assert torch.equal(got, expected)
    # cut at the tag, the text behind it would have lost its space
    tokens = case.ours.special_tokens
    cut = replace_written(tokens.spans, {})
    if "<image>is" in text or "<image> " in text:
        assert cut.encode([Span(text)]) != tokens.encode(text)


def replace_written(spans: Any, written: dict[str, str]) -> Any:
    return type(spans)(spans.tokenizer, spans.image_id, spans.end_id, written)


def test_the_two_tokens_are_the_vocabulary_s(llava: Case) -> None:
    tokens = llava.ours.special_tokens
    assert tokens.encode("a<image>b<|endofchunk|>") == [97, IMAGE, 98, 258]
    assert tokens.decode([97, IMAGE, 98, 258]) == "ab"
    assert not list(llava.ours.special_tokens.parameters())
    assert {n.split(".")[0] for n in llava.ours.trained_parameters()} == {"connector"}


def test_somebody_s_words_hold_no_image(llava: Case) -> None:
    tokens = llava.ours.special_tokens
    ids = tokens.encode([Span("a"), Span("<image></s>", "user")])
    assert ids == list(b"a<image></s>")
    template = template_named("chat", llava.ours.language.tokenizer)
    with pytest.raises(PromptError, match="<image>"):
        template([], im.Example((), "What is <image>?"))
    # nor where the tokenizer does not call the token special
    plain = byte_tokenizer()
    plain.add_tokens(["<image>"])
    loose = SpanTokenizer(plain, IMAGE, 258, {"<image>": "<image>"})
    assert loose.encode([Span("<image>"), Span("<image>", "user")]) == [IMAGE, *b"<image>"]


@pytest.mark.parametrize("with_image", [True, False])
def test_the_image_token_is_never_generated(tmp_path: Path, with_image: bool) -> None:
    case = case_of(tmp_path)
    head = case.ours.language.output_embedding.weight
    prompt = im.Prompt("<image>a", (image(1),)) if with_image else im.Prompt("abc")
    batch = case.ours.prepare([prompt.text], [list(prompt.images)])
    with torch.no_grad():
        head[IMAGE] = 0  # of the model's own last states, so that it is the likeliest
        states = case.ours.language.model.model(
            inputs_embeds=case.ours.special_tokens.embed(batch.input_ids)
        ).last_hidden_state
        head[IMAGE] = 100 * states[0, -1] / states[0, -1].norm()
        if with_image:
            with case.ours.in_sight(batch) as embeddings:
                states = case.ours.language.model.model(inputs_embeds=embeddings).last_hidden_state
            head[IMAGE] = 100 * states[0, -1] / states[0, -1].norm()
    assert int(case.ours(batch).logits[0, -1].argmax()) == IMAGE
    assert IMAGE not in generate(case.ours, batch, max_new_tokens=4)[0].tolist()
    engine = im.Engine(case.ours)
    [made] = engine.generate([prompt], max_new_tokens=4)
    assert IMAGE not in made.completions[0].ids
    drawn = engine.generate([prompt], max_new_tokens=4, samples=8, temperature=2.0)
    assert all(IMAGE not in c.ids for c in drawn[0].completions)


def test_padding_may_lie_behind_the_image_token(tmp_path: Path) -> None:
    """LLaVA-1.5 has `<image>` as 32000 and `<pad>` as 32001."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<filling>"})
    case = case_of(tmp_path, tokenizer=tokenizer)
    assert case.ours.pad_id == IMAGE + 1
    texts, images = BATCHES["mixed"]
    inputs = case.inputs(texts, [i for own in images for i in own])
    batch = case.ours.prepare(texts, images, padding_side="right")
    assert torch.equal(batch.input_ids, inputs["input_ids"])


def test_an_image_token_may_lie_beyond_the_table(llava: Case) -> None:
    tokens = VocabularyTokens(llava.ours.language, ROWS + 3)
    assert tokens.never == ()
    ids = torch.tensor([tokens.encode("a<image>b")])
    assert ids.tolist() == [[97, ROWS + 3, 98]]
    table = llava.ours.language.input_embedding.weight
    assert torch.equal(tokens.embed(ids)[0, [0, 2]], table[[97, 98]])


@pytest.mark.parametrize(("image_id", "message"), [(97, '"a", which any text'), (258, "end of")])
def test_a_wrong_image_token_is_refused(llava: Case, image_id: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VocabularyTokens(llava.ours.language, image_id)


# --- generation -----------------------------------------------------------------------------------


def prompts(case: Case) -> list[im.Prompt]:
    """Prompts of the chat template, with demonstrations, several images, and none."""
    template = template_named("chat", case.ours.language.tokenizer)
    shots = [im.Example(image(10 + i), f"Number {i}?", f"{i * 7}") for i in range(2)]
    return [
        template([], im.Example(image(1), "What is it?")),
        template(shots, im.Example(image(2, (90, 40)), "Number 5?")),
        template(shots, im.Example(image(3), "Number 6, which is longer?")),
        template([], im.Example((image(4), image(5)), "Which of them?")),
        template([], im.Example((), "What is 1 + 1?")),
    ]


def test_prompts_are_those_of_the_processor(case: Case) -> None:
    shown = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    asked = [{"role": "user", "content": shown}]
    expected = case.processor.apply_chat_template(asked, add_generation_prompt=True)
    assert case.ours.config.template == "chat"
    assert prompts(case)[0].text == expected


def test_a_conversation_is_written_as_the_processor_does(case: Case) -> None:
    """What the server makes of messages."""
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
    assert made.text == expected
    batch = case.ours.prepare([made.spans], [shown])
    assert torch.equal(batch.input_ids, case.inputs([expected], shown)["input_ids"])


def test_greedy_texts_are_the_class_s_own(case: Case) -> None:
    engine = im.Engine(case.ours, batch_size=3)
    asked = prompts(case)
    expected = [case.says(p.text, list(p.images)) for p in asked]
    assert len({*expected}) > 2
    for _ in range(2):  # the second time the shared prefix is there
        made = engine.generate(asked, max_new_tokens=NEW)
        assert [m.completions[0].text for m in made] == [e.strip() for e in expected]
    assert made[1].cached_tokens > 30
    for prompt, text in zip(asked, expected, strict=True):
        batch = case.ours.prepare([prompt.spans], [list(prompt.images)])
        ids = generate(case.ours, batch, max_new_tokens=NEW)[0]
        assert case.ours.special_tokens.decode(ids).rstrip("\ufffd") == text


def test_beams_are_the_class_s_own(llava: Case) -> None:
    text, shown = "USER: <image>\nWhat is it? ASSISTANT:", [image(1)]
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    ids = generate(llava.ours, llava.ours.prepare([text], [shown]), **options)
    inputs = llava.inputs([text], shown)
    theirs = llava.theirs.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(ids, theirs)


def test_the_server_says_what_the_class_says(case: Case) -> None:
    asked = prompts(case)
    with ServingEngine(case.ours, max_batch=3, prefill_tokens=40) as engine:
        tickets = [
            engine.submit(GenerationRequest(prompt=p, max_new_tokens=NEW)) for p in asked * 2
        ]
        texts = [ticket.result()[0] for ticket in tickets]
        assert engine.statistics().rows_together
    assert texts == [case.says(p.text, list(p.images)) for p in asked] * 2


@torch.no_grad()
def naive_scores(case: Case, prompt: im.Prompt, answers: list[str]) -> list[float]:
    """One forward pass of Transformers' class for each answer."""
    inputs = case.inputs([prompt.text], list(prompt.images))
    start = inputs["input_ids"].shape[1]
    scores = []
    for answer in answers:
        own = torch.tensor([list(answer.encode())])
        ids = torch.cat([inputs["input_ids"], own], dim=1)
        logits: Tensor = case.theirs(input_ids=ids, pixel_values=inputs.get("pixel_values")).logits[
            0, start - 1 : -1
        ]
        scores.append(-float(F.cross_entropy(logits, own[0], reduction="sum")))
    return scores


def test_closed_answers_are_scored_as_by_the_class(case: Case) -> None:
    answers = [" cat", " cats", " dog", " a"]
    asked = prompts(case)
    scored = im.Engine(case.ours, batch_size=2).score(asked, answers)
    for prompt, own in zip(asked, scored, strict=True):
        expected = naive_scores(case, prompt, answers)
        assert own.logprobs == pytest.approx(expected, abs=1e-4)


def test_what_was_exported_comes_in_again(llava: Case, tmp_path: Path) -> None:
    """A strip of ours as a LLaVA of Transformers, and back: the same logits and texts."""
    model = im.compose(f"hf:{llava.folder}", "tiny-lm", im.MLP(), template="plain")
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    im.export(model, tmp_path / "out")
    again = im.load(tmp_path / "out")
    assert again.language.tokenizer.decode([again.special_tokens.end_id]) == "<|endofchunk|>"
    shots = [im.Example(image(1), "What is it?", "a cat")]
    for shown in ([], shots):
        answers = [
            im.ask(m, image(2), "And this?", shots=shown, max_new_tokens=NEW)
            for m in (model, again)
        ]
        assert answers[0].prompt == answers[1].prompt
        assert answers[0].text == answers[1].text
        images = [*(e.images[0] for e in shown), image(2)]
        with torch.no_grad():
            one, other = (
                m(m.prepare([answers[0].prompt], [images])).logits for m in (model, again)
            )
        words = model.language.vocab_rows
        torch.testing.assert_close(one[..., :words], other[..., :words], rtol=0, atol=TOLERANCE)


# --- the rest of the package ----------------------------------------------------------------------


def test_it_answers_and_is_evaluated(llava: Case) -> None:
    answer = im.ask(llava.ours, image(1), "What is it?", max_new_tokens=NEW)
    assert answer.text == llava.says("USER: <image>\nWhat is it? ASSISTANT:", [image(1)]).strip()
    for task, shots in (("parity", 2), ("fast-binding-2", 1)):
        [row] = evaluate(llava.ours, task, shots=[shots], limit=4).rows
        assert row.n == 4


CHECKS = (
    testing.check_evaluation_mode,
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
    check(case.ours)


def test_a_copy_shares_nothing(case: Case) -> None:
    other = copy.deepcopy(case.ours)
    batch = case.ours.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        expected = case.ours(batch).logits
        assert torch.equal(other(batch).logits, expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(case.ours(batch).logits, expected)


def test_a_training_step_moves_the_strip_alone(tmp_path: Path) -> None:
    testing.check_training_step(im.load(write_tiny_llava(tmp_path)))


def test_it_trains(llava: Case, tmp_path: Path) -> None:
    for number in range(4):
        image(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    model = replace_template(im.load(llava.folder), "plain")
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=3, batch_size=4, pack=128, **options)
    im.train(model, tmp_path, config, tmp_path / "run", quiet=True)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"connector"}
    again = im.load(tmp_path / "run")
    batch = model.prepare(["<image>Output:"], [[image(1)]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def replace_template(model: im.VisionLanguageModel, template: str) -> im.VisionLanguageModel:
    model.config = replace(model.config, template=template)
    return model


def trained(case: Case) -> im.VisionLanguageModel:
    """The model, its connector moved on."""
    model = im.load(case.folder)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_strip_over_it_is_saved_alone_and_loads_again(case: Case, tmp_path: Path) -> None:
    model = trained(case)
    saved = im.save(model, tmp_path / "strip")
    again = im.load(saved)
    assert again.config == model.config
    assert again.config.tokens is not None
    batch = model.prepare(["USER: <image>\na"], [[image(1)]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)
        assert not torch.equal(case.ours(batch).logits, model(batch).logits)
    from safetensors.torch import load_file

    assert all(n.startswith("connector.") for n in load_file(saved / "model.safetensors"))


def test_a_run_starts_from_it(case: Case, tmp_path: Path) -> None:
    model = trained(case)
    saved = im.save(model, tmp_path / "strip")
    config = RunConfig(model=model.config, train=TrainConfig(init=str(saved)), data=())
    again = build(config, "cpu").eval()
    assert isinstance(again, im.VisionLanguageModel)
    batch = model.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)


def test_a_strip_refuses_another_model_s_weights(llava: Case, tmp_path: Path) -> None:
    write_tiny_llava(tmp_path / "model")
    saved = im.save(im.load(tmp_path / "model"), tmp_path / "strip")
    write_tiny_llava(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="other weights"):
        im.load(saved)


def test_lora_and_half_precision(llava: Case, tmp_path: Path) -> None:
    model = im.load(llava.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = model.prepare(["<image>a"], [[image(1)]])
    assert model(batch).logits.isfinite().all()
    config = replace(llava.ours.config, language=replace(llava.ours.config.language, lora_rank=2))
    tuned = build(RunConfig(model=config, train=TrainConfig(), data=()), "cpu").eval()
    assert isinstance(tuned, im.VisionLanguageModel)
    again = im.load(im.save(tuned, tmp_path))
    with torch.no_grad():
        assert torch.equal(again(batch).logits, tuned(batch).logits)


def test_the_tool_for_real_weights_compares_the_same(llava: Case) -> None:
    tool = Path(__file__).parents[2] / "tools" / "try_released.py"
    command = [
        sys.executable,
        str(tool),
        f"hf:{llava.folder}",
        "hf:no-such/folder",
        "--tokens",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("hf:")]
    assert done.returncode == 1  # for the one that is not there
    assert [line.endswith("equal") for line in lines] == [True] * 11 + [False]
    assert "Traceback" not in done.stderr
