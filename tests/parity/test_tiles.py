"""Released models that cut images into tiles, taken apart, say what Transformers' classes say."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Idefics3Processor,
)

import isthmus as im
from isthmus import testing
from isthmus.config.model import RunConfig, TrainConfig
from isthmus.errors import ConfigError, PromptError
from isthmus.evaluation.runner import evaluate
from isthmus.generation.decode import generate
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.backbones.tiny_tiles import FAMILIES, ROWS, SIZE, write_tiny_tiles
from isthmus.model.media.base import Opened
from isthmus.prompts.templates import template_named
from isthmus.serving.conversation import Conversations, Turn
from isthmus.training.run import build

from .reference import TOLERANCE

NEW = 6
"""Tokens that are generated."""
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Case:
    """A repository in a folder, Transformers' model and processor of it, and ours."""

    family: str
    folder: Path
    theirs: Any
    processor: Any
    ours: im.VisionLanguageModel

    @property
    def tag(self) -> str:
        """What stands for an image in a text."""
        return "<IMG_CONTEXT>" if self.family == "internvl" else "<image>"

    def inputs(self, texts: list[str], images: list[Any], side: str = "left", **how: Any) -> Any:
        """What the repository's own processor makes of prompts."""
        self.processor.tokenizer.padding_side = side
        texts = [text.replace("<image>", self.tag) for text in texts]
        return self.processor(
            images=images or None, text=texts, padding=True, return_tensors="pt", **how
        )

    def says(self, text: str, images: list[Any]) -> str:
        """What the class itself generates."""
        inputs = self.inputs([text], images)
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True)).rstrip("\ufffd")


def processor_of(folder: Path, family: str) -> Any:
    if family != "smolvlm":
        return AutoProcessor.from_pretrained(folder)
    # its own needs num2words, for videos, and writes images as Idefics3's does
    images = AutoImageProcessor.from_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text()
    words = AutoTokenizer.from_pretrained(folder)
    return Idefics3Processor(images, words, image_seq_len=4, chat_template=template)


def case_of(folder: Path, family: str, **options: Any) -> Case:
    write_tiny_tiles(folder, family, **options)
    theirs = AutoModelForImageTextToText.from_pretrained(folder)
    return Case(family, folder, theirs, processor_of(folder, family), im.load(folder))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp(request.param), request.param)


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def opened(model: im.VisionLanguageModel, shown: Any) -> Opened:
    found = model.media[0].open(model, shown)
    assert isinstance(found, Opened)
    return found


# --- pixels, tokens, logits -----------------------------------------------------------------------

SIZES = [(32, 32), (50, 70), (200, 31), (33, 400), (97, 95), (64, 96)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_ids_are_the_processor_s(case: Case, size: tuple[int, int]) -> None:
    for shown in (image(0, size), image(1, size).convert("L")):
        theirs = case.inputs(["a<image>b"], [shown])
        pixels = opened(case.ours, shown).values
        assert torch.equal(pixels, theirs["pixel_values"].flatten(0, -4))
        ids = case.ours.prepare(["a<image>b"], [[shown]]).input_ids
        assert torch.equal(ids, theirs["input_ids"])


def test_a_photograph_is_opened_as_the_processor_does(case: Case) -> None:
    path = sorted(EXAMPLES.glob("*.jpg"))[0]
    theirs = case.inputs(["<image>"], [im.open_image(path).convert("RGB")])
    found = opened(case.ours, path)
    assert torch.equal(found.values, theirs["pixel_values"].flatten(0, -4))
    assert found.values.shape[0] > 2


BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one": (["User: <image>What is it?"], [[image(1)]]),
    "several": (
        ["User: <image><image>Which? Assistant: this<image>\nNow?"],
        [[image(1), image(2, (40, 90)), image(3)]],
    ),
    "mixed": (
        ["<image>a", "no image", "b <image> and <image> in a longer text", "<image>"],
        [[image(1)], [], [image(2, (96, 33)), image(3, (33, 96))], [image(4, (32, 32))]],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_class_s_own(case: Case, name: str, side: str) -> None:
    texts, images = BATCHES[name]
    if case.family == "internvl":
        side = "left"  # whatever its tokenizer says
    inputs = case.inputs(texts, [i for own in images for i in own], side)
    batch = case.ours.prepare(texts, images, padding_side=side)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    assert torch.equal(batch.attention_mask, inputs["attention_mask"])
    assert batch.layouts is not None
    if name == "mixed":
        assert len({layout.holes for layout in batch.layouts}) > 1
    if side == "left":  # as `generate` does; `forward` alone counts padding as positions
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got, expected = case.ours(batch).logits, case.theirs(**inputs).logits
    assert got.shape == (*batch.input_ids.shape, ROWS)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    # images count: other ones have other logits
    shown = [[image(9, i.size[::-1]) for i in own] for own in images]
    with torch.no_grad():
        moved = case.ours(case.ours.prepare(texts, shown, padding_side=side)).logits[real]
    assert (moved - got[real]).abs().max() > 1e-2


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


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("idefics3", {"scale_factor": 4, "tie_word_embeddings": True}),
    ("smolvlm", {"language": "mistral"}),
    ("llava_next", {"vision_feature_layer": [-1], "multimodal_projector_bias": False}),
    ("llava_next", {"language": "mistral", "tie_word_embeddings": True}),
    ("llava_onevision", {"language": "qwen2", "vision_aspect_ratio": "anyres_max_9"}),
    ("internvl", {"language": "qwen2", "vision_feature_layer": -2}),
    ("internvl", {"vision": {"use_mean_pooling": True, "norm_type": "rms_norm"}}),
]


@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_every_supported_option(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    case = case_of(tmp_path, family, **options)
    shown = [image(1, (90, 60)), image(2, (31, 80))]
    inputs = case.inputs(["a<image>b<image>c"], shown)
    batch = case.ours.prepare(["a<image>b<image>c"], [shown])
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    with torch.no_grad():
        expected, got = case.theirs(**inputs).logits, case.ours(batch).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llava_next", {"vision_feature_layer": [-1, -2]}, "side by side"),
    ("llava_next", {"vision_feature_select_strategy": "full"}, 'expected "default"'),
    ("llava_onevision", {"projector_hidden_act": "relu"}, '"relu": expected "gelu"'),
    ("internvl", {"vision_feature_select_strategy": "full"}, "keeps the class token"),
]


@pytest.mark.parametrize(("family", "options", "message"), REFUSED, ids=str)
def test_what_our_parts_lack_is_refused(
    tmp_path: Path, family: str, options: dict[str, Any], message: str
) -> None:
    write_tiny_tiles(tmp_path, family, **options)
    with pytest.raises(ConfigError, match=message):
        im.load(tmp_path)


# --- fewer tiles ----------------------------------------------------------------------------------

UNSPLIT = {
    "idefics3": {"do_image_splitting": False},
    "smolvlm": {"do_image_splitting": False},
    "internvl": {"crop_to_patches": False},
    "llava_next": {},
    "llava_onevision": {},
}


def test_an_image_left_whole_is_the_class_s(case: Case) -> None:
    whole = im.load(case.folder, image_options={"max_tiles": 1})
    shown = [image(1), image(2, (96, 33))]
    text = "a<image>b<image>c"
    batch = whole.prepare([text], [shown])
    pixels = torch.stack([whole.vision.preprocess(own) for own in shown])
    if case.family == "llava_next":  # whose processor cuts them all: the first tile is the whole
        inputs = case.inputs(["<image>"], shown[:1])
        assert torch.equal(pixels[0], inputs["pixel_values"][0, 0])
        inner = case.theirs.model
        with torch.no_grad():
            features = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
            features = inner.multi_modal_projector(features[:, 1:])
            packed, _ = inner.pack_image_features(
                features[:, None], None, "default", inner.image_newline
            )
            embeddings = case.theirs.get_input_embeddings()(batch.input_ids)
            holes = (batch.input_ids == case.theirs.config.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(holes, torch.cat(packed))
            expected = case.theirs(inputs_embeds=embeddings).logits
    else:  # OneVision leaves several images of a prompt whole by itself
        nested = [shown] if case.family == "llava_onevision" else shown
        inputs = case.inputs([text], nested, **UNSPLIT[case.family])
        assert torch.equal(pixels, inputs["pixel_values"].flatten(0, -4))
        assert torch.equal(batch.input_ids, inputs["input_ids"])
        with torch.no_grad():
            expected = case.theirs(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(whole(batch).logits, expected, rtol=0, atol=TOLERANCE)
    # pixels of one tile are an image left whole, of any model of the family
    again = case.ours.prepare([text], [list(pixels)])
    assert torch.equal(again.input_ids, batch.input_ids)
    with torch.no_grad():
        assert torch.equal(case.ours(again).logits, whole(batch).logits)
        bare = replace(again, pixels=pixels)  # as a batch of one's own may hold them
        assert torch.equal(case.ours(bare).logits, whole(batch).logits)
        assert torch.equal(case.ours.encode_pixels(pixels), case.ours.vision(pixels))


@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
def test_no_image_has_more_tiles_than_asked_for(case: Case, most: int) -> None:
    model = im.load(case.folder, image_options={"max_tiles": most})
    counts = set()
    for size in (*SIZES, (480, 640), (31, 33)):
        shown = opened(model, image(0, size))
        tiles = len(shown.values) - (len(shown.values) > 1)
        assert tiles <= most
        counts.add(tiles)
        layout = model.media[0].layout(model, shown)
        assert len(layout) <= model.summary().text_positions
        assert layout.holes <= model.summary().visual_tokens
    assert most == 1 or max(counts) > 1
    # of what fits, the most is taken
    free = opened(case.ours, image(0, (64, 96)))
    if len(free.values) - 1 <= most:
        assert torch.equal(opened(model, image(0, (64, 96))).values, free.values)


def test_the_summary_counts_all_tiles(case: Case) -> None:
    summary = case.ours.summary()
    usual = case.ours.media[0].open(case.ours, image(0, (480, 640)))
    assert summary.usual_tokens == case.ours.media[0].layout(case.ours, usual).holes
    assert summary.usual_tokens <= summary.visual_tokens
    alone = im.load(case.folder, image_options={"max_tiles": 1}).summary()
    assert alone.flops["vision"] * 2 < summary.flops["vision"]
    assert f"{summary.usual_tokens} mostly" in str(summary)


def test_an_option_that_is_none_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match=r'unknown image option "tiles".*max_tiles'):
        im.load(case.folder, image_options={"tiles": 2})
    with pytest.raises(ConfigError, match=r"max_tiles = 0: expected"):
        im.load(case.folder, image_options={"max_tiles": 0})
    with pytest.raises(ConfigError, match='image option "max_tiles": this model opens all images'):
        im.load("tiny", image_options={"max_tiles": 2})
    with pytest.raises(ConfigError, match="dual encoder and has no image options"):
        im.load("tiny-clip", image_options={"max_tiles": 2})


def test_the_medium_needs_the_released_processor() -> None:
    from isthmus.model.media.grid_tiles import GridTiles

    with pytest.raises(ConfigError, match=r'grid_tiles cuts images .* "tiny-vit" has none'):
        im.compose("tiny-vit", "tiny-lm", im.MLP(), media=[GridTiles()])


# --- generation -----------------------------------------------------------------------------------


def prompts(case: Case) -> list[im.Prompt]:
    """Prompts of the chat template, with demonstrations, several images, and none."""
    template = template_named("chat", case.ours.language.tokenizer)
    shots = [
        im.Example(image(10 + i, (64, 33 + 40 * i)), f"Number {i}?", f"{i * 7}") for i in range(2)
    ]
    return [
        template([], im.Example(image(1), "What is it?")),
        template(shots, im.Example(image(2, (90, 40)), "Number 5?")),
        template(shots, im.Example(image(3), "Number 6, which is longer?")),
        template([], im.Example((image(4), image(5, (30, 90))), "Which of them?")),
        template([], im.Example((), "What is 1 + 1?")),
    ]


def test_a_conversation_is_written_as_the_processor_does(case: Case) -> None:
    """In parts, which is all that the chat template takes; what the server makes of messages."""
    shown = [image(1), image(2, (90, 30))]
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
    assert made.text == expected.replace(case.tag, "<image>")
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
    ids, scores = inputs["input_ids"], []
    rest = {n: v for n, v in inputs.items() if n not in ("input_ids", "attention_mask")}
    for answer in answers:
        own = torch.tensor([list(answer.encode())])
        logits: Tensor = case.theirs(input_ids=torch.cat([ids, own], dim=1), **rest).logits
        wanted = logits[0, ids.shape[1] - 1 : -1]
        scores.append(-float(F.cross_entropy(wanted, own[0], reduction="sum")))
    return scores


def test_closed_answers_are_scored_as_by_the_class(case: Case) -> None:
    answers = [" cat", " cats", " dog", " a"]
    asked = prompts(case)
    scored = im.Engine(case.ours, batch_size=2).score(asked, answers)
    for prompt, own in zip(asked, scored, strict=True):
        assert own.logprobs == pytest.approx(naive_scores(case, prompt, answers), abs=1e-4)


def test_an_image_at_low_detail_is_another_image_to_the_engine(case: Case) -> None:
    medium: Any = case.ours.media[0]
    whole, cut = medium.open_low(case.ours, image(1)), opened(case.ours, image(1))
    engine = im.Engine(case.ours)
    asked = [im.Prompt("<image>What?", (own,)) for own in (image(1), whole, cut)]
    scores = [engine.score([prompt], [" a", " b"])[0].logprobs for prompt in asked]
    assert scores[2] == pytest.approx(scores[0], abs=1e-5)
    assert abs(scores[1][0] - scores[0][0]) > 1e-3
    alone = im.load(case.folder, image_options={"max_tiles": 1})
    expected = im.Engine(alone).score(asked[:1], [" a", " b"])[0].logprobs
    assert scores[1] == pytest.approx(expected, abs=1e-5)


def test_a_clip_is_refused(case: Case) -> None:
    with pytest.raises(PromptError, match="a clip of 2 frames"):
        case.ours(case.ours.prepare(["<image>"], [[[image(1), image(2)]]]))


# --- the rest of the package ----------------------------------------------------------------------


def test_it_answers_and_is_evaluated(case: Case) -> None:
    answer = im.ask(case.ours, image(1), "What is it?", max_new_tokens=NEW)
    assert answer.text == case.says(answer.prompt, [image(1)]).strip()
    [row] = evaluate(case.ours, "parity", shots=[2], limit=2).rows
    assert row.n == 2


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


def test_a_training_step_moves_the_strip_alone(case: Case) -> None:
    testing.check_training_step(im.load(case.folder))


def test_it_trains_and_the_strip_loads_again(case: Case, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        image(number, (40, 40 + 30 * number)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    model = im.load(case.folder)
    model.config = replace(model.config, template="plain")
    before = {n: p.clone() for n, p in model.named_parameters()}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    config = TrainConfig(steps=3, batch_size=4, pack=512, **options)
    im.train(model, data, config, tmp_path / "run", quiet=True)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    medium = {"tiles_medium.cut.newline"} if case.family.startswith("llava") else set()
    assert moved == {n for n in before if n.startswith("connector.")} | medium
    again = im.load(tmp_path / "run")
    batch = model.prepare(["<image>Output:"], [[image(1)]])
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, model.eval()(batch).logits)


def trained(case: Case) -> im.VisionLanguageModel:
    """The model, what is trained of it moved on."""
    model = im.load(case.folder, image_options={"max_tiles": 4})
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_strip_over_it_is_saved_alone(case: Case, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = trained(case)
    saved = im.save(model, tmp_path / "strip")
    again = im.load(saved)
    assert again.config == model.config
    assert again.config.media[0].max_tiles == 4
    assert im.load(saved, image_options={"max_tiles": 2}).config.media[0].max_tiles == 2
    batch = model.prepare(["<image>\na"], [[image(1, (96, 33))]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)
        assert not torch.equal(case.ours(batch).logits, model(batch).logits)
    named = load_file(saved / "model.safetensors")
    assert {n.split(".")[0] for n in named} <= {"connector", "tiles_medium"}


def test_a_run_starts_from_it(case: Case, tmp_path: Path) -> None:
    model = trained(case)
    saved = im.save(model, tmp_path / "strip")
    config = RunConfig(model=model.config, train=TrainConfig(init=str(saved)), data=())
    again = build(config, "cpu").eval()
    assert isinstance(again, im.VisionLanguageModel)
    batch = model.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)


def test_half_precision(case: Case) -> None:
    model = im.load(case.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = model.prepare(["<image>a"], [[image(1)]])
    assert model(batch).logits.isfinite().all()
    assert batch.pixels[0].values.shape[-1] == SIZE  # type: ignore[index, union-attr]
