"""Gemma 3 and PaliGemma, taken apart, say what Transformers' own classes say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus import testing
from isthmus.cli import main
from isthmus.errors import ConfigError, PromptError
from isthmus.generation.decode import generate
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.generation.structure import takes_lanes, takes_trees
from isthmus.model.backbones.tiny_gemma import IMAGE, write_tiny_gemma3, write_tiny_paligemma
from isthmus.model.batch import IGNORED, Batch
from isthmus.model.connectors.norm_pool import NormPool
from isthmus.prompts.templates import template_named

from .reference import TOLERANCE

NEW = 10
ANSWERS = [" cat", " dog", " catfish", " c"]
KINDS: dict[str, Callable[[Path], Path]] = {
    "gemma3": write_tiny_gemma3,
    "gemma3 without windows": lambda folder: write_tiny_gemma3(folder, slides=False),
    "paligemma": write_tiny_paligemma,
    "paligemma2": lambda folder: write_tiny_paligemma(folder, language="gemma2"),
}


class Case:
    """A repository in a folder, Transformers' model and processor of it, and ours."""

    def __init__(self, kind: str, folder: Path) -> None:
        KINDS[kind](folder)
        self.kind, self.folder = kind, folder
        self.theirs: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.ours: im.VisionLanguageModel = im.load(folder)
        self.prefix = kind.startswith("pali")

    def inputs(
        self, texts: list[str], images: list[list[Image.Image]], side: str = "left"
    ) -> dict[str, Any]:
        """What the repository's own processor makes of prompts, `<image>` in them."""
        self.processor.tokenizer.padding_side = side
        mark = "<image>" if self.prefix else "<start_of_image>"
        written = [text.replace("<image>", mark) for text in texts]
        made = dict(self.processor(images=images, text=written, padding=True, return_tensors="pt"))
        made.pop("labels", None)
        return made

    def own(self, text: str) -> str:
        """Our prompt of the text that the processor is given."""
        if not self.prefix:
            return text
        behind = text.rfind("<image>") + len("<image>")
        return f"{text[:behind]}<s>{text[behind:]}\n"

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """The class's logits; positions as its `generate` counts them, whatever the padding."""
        counted = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + self.prefix
        with torch.no_grad():
            logits: Tensor = self.theirs(**inputs, position_ids=counted).logits
        return logits

    def naive(self, text: str, images: list[Image.Image], answer: list[int]) -> Tensor:
        """Log-probabilities of an answer's tokens, by one forward pass of the class."""
        inputs = self.inputs([text], [images])
        kinds = inputs["token_type_ids"]
        more = torch.tensor([answer])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        own = torch.full_like(more, int(self.prefix))  # an answer's tokens are seen from behind
        inputs["token_type_ids"] = torch.cat([kinds, own], dim=1)
        known = self.forward(inputs)[0, -len(answer) - 1 : -1].log_softmax(dim=-1)
        return known.gather(1, more[0][:, None]).squeeze(1)

    def says(self, text: str, images: list[Image.Image]) -> list[int]:
        """What the class itself generates."""
        inputs = self.inputs([text], [images])
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        return [int(i) for i in ids[0, inputs["input_ids"].shape[1] :]]


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module", params=["gemma3", "gemma3 without windows"])
def gemma(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module", params=["paligemma", "paligemma2"])
def pali(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("pali"))


def image(seed: int = 0, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (33, 400)])
def test_pixels_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    shown = image(0, size)
    theirs = case.inputs(["<image>a"], [[shown]])["pixel_values"][0]
    assert torch.equal(case.ours.vision.preprocess(shown), theirs)


BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one": (["<image>What is it?"], [[image(1)]]),
    "several": (["<image><image>Which of the two?"], [[image(1), image(2, (40, 90))]]),
    "mixed": (
        ["<image>a", "<image><image>in a longer text", "<image>b and c"],
        [[image(1)], [image(2, (90, 33)), image(3)], [image(4, (32, 32))]],
    ),
    # Gemma's images stand anywhere, or nowhere
    "anywhere": (
        ["See <image>, then\n<image>\n\nand?", "no image", "\n<image>\n\n\na"],
        [[image(1), image(2)], [], [image(3)]],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_class_s_own(case: Case, name: str, side: str) -> None:
    if case.prefix and name == "anywhere":
        pytest.skip("images stand in front")
    texts, images = BATCHES[name]
    inputs = case.inputs(texts, images, side)
    batch = case.ours.prepare([case.own(t) for t in texts], images, padding_side=side)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    expected = case.forward(inputs)
    with torch.no_grad():
        got = case.ours(batch).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    # what tokens see counts: read from the front alone, the logits are others
    causal = {**inputs, "token_type_ids": None}
    if case.prefix:
        causal["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    assert (case.forward(causal)[real] - got[real]).abs().max() > 1e-2
    other = case.ours.prepare(
        [case.own(t) for t in texts], [[image(9) for _ in own] for own in images], padding_side=side
    )
    with torch.no_grad():
        assert (case.ours(other).logits[real] - got[real]).abs().max() > 1e-2


def test_text_alone(gemma: Case) -> None:
    batch = gemma.ours.prepare(["Only words, no image.", "Fewer."], padding_side="right")
    expected = gemma.forward({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
    with torch.no_grad():
        assert torch.equal(gemma.ours(batch).logits, expected)
    testing.check_text_is_untouched(gemma.ours)


def test_a_text_alone_sees_itself(pali: Case) -> None:
    batch = pali.ours.prepare(["<s>Only words\n", "<s>Few\n"])
    expected = pali.forward(
        {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": torch.zeros_like(batch.input_ids),
        }
    )
    real = batch.attention_mask.bool()
    with torch.no_grad():
        got = pali.ours(batch).logits
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)


def test_the_decoder_alone_writes(pali: Case) -> None:
    """Its configuration says that it reads in both directions, which holds of prompts alone."""
    language = im.load_language(f"hf:{pali.folder}")
    with torch.no_grad():
        one, other = (language.model(torch.tensor([ids])).logits for ids in ([1, 2, 3], [1, 2, 4]))
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=TOLERANCE)
    assert language.reading.first == 1


def test_windows_count(tmp_path: Path) -> None:
    """Layers that slide see less, and those that do not are others."""
    texts, images = BATCHES["anywhere"]
    found = []
    for window in (4, 512):
        model = im.load(write_tiny_gemma3(tmp_path / str(window), window=window))
        batch = model.prepare(texts, images)
        with torch.no_grad():
            found.append(model(batch).logits[batch.attention_mask.bool()])
    assert (found[0] - found[1]).abs().max() > 1e-2
    case = Case.__new__(Case)
    case.prefix = False
    case.theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "4").eval()
    case.processor = AutoProcessor.from_pretrained(tmp_path / "4")
    inputs = case.inputs(texts, images)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[0], case.forward(inputs)[real], rtol=0, atol=TOLERANCE)


# --- generating -----------------------------------------------------------------------------------


def test_greedy_tokens_are_the_class_s_own(case: Case) -> None:
    texts, images = BATCHES["mixed"]
    prompts = [im.Prompt(case.own(t), tuple(i)) for t, i in zip(texts, images, strict=True)]
    expected = [case.says(t, i) for t, i in zip(texts, images, strict=True)]
    assert len({tuple(ids) for ids in expected}) > 1
    engine = im.Engine(case.ours)
    for made, ids in zip(engine.generate(prompts, max_new_tokens=NEW), expected, strict=True):
        assert list(made.completions[0].ids) == ids
    batch = case.ours.prepare([p.text for p in prompts], [list(p.images) for p in prompts])
    rows = generate(case.ours, batch, max_new_tokens=NEW).tolist()
    for row, ids in zip(rows, expected, strict=True):
        assert row[: len(ids)] == ids
    beams = generate(case.ours, batch, max_new_tokens=4, num_beams=2, num_return_sequences=2)
    assert len(beams) == 2 * len(prompts)


def asked(case: Case, number: int = 0, shots: int = 0) -> im.Prompt:
    """A prompt of the model's own template."""
    template = template_named(case.ours.config.template, case.ours.language.tokenizer)
    shown = [im.Example(image(20 + n), "What?", f"thing {n}") for n in range(shots)]
    return template(shown, im.Example(image(number), f"What is number {number}?"))


@pytest.mark.parametrize("shots", [0, 2])
def test_prompts_that_share_their_beginning(gemma: Case, shots: int) -> None:
    prompts = [asked(gemma, number, shots) for number in range(3)]
    engine = im.Engine(gemma.ours)
    together = engine.generate(prompts, max_new_tokens=NEW)
    known = {made.cached_tokens for made in together}
    assert len(known) == 1
    assert min(known) >= (60 if shots else 1)  # a turn's first words are shared too
    scores = engine.score(prompts, ANSWERS)
    for prompt, made, found in zip(prompts, together, scores, strict=True):
        assert list(made.completions[0].ids) == gemma.says(prompt.text, list(prompt.images))
        expected = [
            float(gemma.naive(prompt.text, list(prompt.images), list(a.encode())).sum())
            for a in ANSWERS
        ]
        assert found.logprobs == pytest.approx(expected, abs=2e-4)


def test_gemma_s_template_is_the_repository_s(gemma: Case) -> None:
    prompt = asked(gemma, 0, 1)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "thing 0"}]},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What is number 0?"}],
        },
    ]
    text = gemma.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    made = gemma.processor(images=[list(prompt.images)], text=[text], return_tensors="pt")
    got = gemma.ours.prepare([prompt.spans], [list(prompt.images)])
    assert torch.equal(got.input_ids, made["input_ids"])
    assert got.input_ids[0].tolist().count(IMAGE) == 8


def test_a_prefix_prompt_shares_nothing_but_its_images(pali: Case) -> None:
    prompts = [asked(pali, 0), asked(pali, 0), asked(pali, 1)]
    assert prompts[0].text == "<image><s>What is number 0?\n"
    engine = im.Engine(pali.ours)
    made = engine.generate(prompts, max_new_tokens=NEW)
    again = engine.generate(prompts, max_new_tokens=NEW)
    assert [m.cached_tokens for m in (*made, *again)] == [0] * 6
    assert engine.statistics.images_encoded == 2
    assert engine.statistics.images_found > 0
    for number, prompt, one in zip((0, 0, 1), prompts, made, strict=True):
        expected = pali.says(f"<image>What is number {number}?", list(prompt.images))
        assert list(one.completions[0].ids) == expected


def test_closed_answers_to_one_prompt_agree_with_a_naive_forward(pali: Case) -> None:
    prompt = asked(pali, 3)
    assert takes_trees(pali.ours.language)  # whose states may slide all the same
    answers = ["cat", "dog", "catfish", "c"]
    [found] = im.Engine(pali.ours).score([prompt], answers)
    expected = [
        float(pali.naive("<image>What is number 3?", list(prompt.images), list(a.encode())).sum())
        for a in answers
    ]
    assert found.logprobs == pytest.approx(expected, abs=2e-4)


def test_rows_share_a_pass_where_nothing_slides(case: Case) -> None:
    assert takes_lanes(case.ours) == (case.kind in ("gemma3 without windows", "paligemma"))


@pytest.mark.parametrize("piece", [5, 256])
def test_the_server_says_the_same(case: Case, piece: int) -> None:
    """Continuous batching, with prompts that are computed in pieces where they may be."""
    shots = 0 if case.prefix else 1
    prompts = [asked(case, number, shots) for number in (0, 1, 2, 0)]
    alone = im.Engine(case.ours).generate(prompts, max_new_tokens=NEW)
    with ServingEngine(case.ours, prefill_tokens=piece) as engine:
        tickets = [
            engine.submit(GenerationRequest(prompt=prompt, max_new_tokens=NEW))
            for prompt in prompts
        ]
        texts = [ticket.result()[0] for ticket in tickets]
        cached = engine.statistics().cached_tokens
    assert [text.strip() for text in texts] == [made.completions[0].text for made in alone]
    assert (cached > 0) == (case.kind == "gemma3 without windows")  # others keep no states


# --- what PaliGemma has not -----------------------------------------------------------------------


def test_shots_are_refused(pali: Case, monkeypatch: Any, capfd: Any, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="0 shots"):
        im.ask(pali.ours, image(), "What?", shots=[im.Example(image(1), "What?", "a cat")])
    image().save(tmp_path / "a.png")
    (tmp_path / "shots.toml").write_text(
        f'[[examples]]\nimages = ["{tmp_path / "a.png"}"]\nquestion = "What?"\nanswer = "a"\n'
    )
    arguments = ("ask", tmp_path / "a.png", "What?", "--model", pali.folder)
    arguments += ("--shots", tmp_path / "shots.toml")
    monkeypatch.setattr("sys.argv", ["isthmus", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    err = capfd.readouterr().err
    assert ended.value.code == 2
    told = err.splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert "Traceback" not in err


def test_an_answer_that_is_trained_sees_what_stands_before_it(pali: Case) -> None:
    """Labels say what is an answer, as the class's token types do."""
    text, answer = "<image>What is it?", list(b"a cat")
    batch = pali.ours.prepare([pali.own(text)], [[image(1)]])
    ids = torch.cat([batch.input_ids, torch.tensor([answer])], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[0, -len(answer) :] = torch.tensor(answer)
    whole = Batch(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels, labels=labels
    )
    with torch.no_grad():
        losses = pali.ours(whole).token_losses
    expected = -pali.naive(text, [image(1)], answer)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-4)


# --- the strip over it ----------------------------------------------------------------------------


def test_the_strip_is_trained_and_saved(case: Case, tmp_path: Path) -> None:
    model = im.load(case.folder)
    assert {n.split(".")[0] for n in model.trained_parameters()} == {"connector"}
    testing.check_training_step(model)
    again = im.load(im.save(model, tmp_path / "strip"))
    assert again.language.reading == model.language.reading
    prompt = asked(case, 1)
    batch = model.prepare([prompt.spans], [list(prompt.images)])
    with torch.no_grad():
        got = again(again.prepare([prompt.spans], [list(prompt.images)])).logits
        assert torch.equal(got, model(batch).logits)
        moved = case.ours(batch).logits - got
    assert moved.abs().max() > 0


def test_packed_rows_are_read_apart(case: Case) -> None:
    testing.check_packing(case.ours)


def test_the_connector_reads_only_grids_that_fit(gemma: Case) -> None:
    with pytest.raises(ConfigError, match="divides"):
        im.compose("tiny-vit", "tiny-lm", NormPool(tokens=9))
    torch.testing.assert_close(
        gemma.ours.connector(torch.zeros(1, 64, 32)), torch.zeros(1, 4, 64), rtol=0, atol=0
    )
