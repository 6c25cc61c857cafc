"""nanoVLM's own repositories say here what its published forward pass says."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import isthmus as im
from isthmus import testing
from isthmus.config.model import RunConfig, TrainConfig
from isthmus.errors import CheckpointError, ConfigError
from isthmus.generation.decode import generate
from isthmus.model.backbones.released import plan_of
from isthmus.model.backbones.tiny_nanovlm import SIDE, TILE, TOKENS, write_tiny_nanovlm
from isthmus.model.media.base import Opened
from isthmus.training.run import build

from .nanovlm_reference import Reference
from .reference import TOLERANCE

NEW = 6
"""Tokens that are generated."""


@dataclass
class Case:
    """A repository in a folder, the published forward pass over its file, and ours."""

    form: str
    folder: Path
    theirs: Reference
    ours: im.VisionLanguageModel

    def inputs(self, text: str, images: list[Image.Image]) -> tuple[Tensor, Tensor | None]:
        """Token ids (L,) of a text with `<image>`, and tiles (T, 3, H, W), as there."""
        cut = [self.theirs.tiles(image) for image in images]
        tiles = torch.cat([tiles for tiles, _ in cut]) if cut else None
        tokenizer, ids = self.ours.language.tokenizer, []
        if self.form == "bare":  # no token: what stands for an image lies beyond the table
            holes = [self.image_id] * self.theirs.told["mp_image_token_length"]
            for number, piece in enumerate(text.split("<image>")):
                ids += (holes if number else []) + tokenizer(piece)["input_ids"]
            return torch.tensor(ids), tiles
        for _, grid in cut:
            text = text.replace("<image>", self.theirs.text(grid), 1)
        return torch.tensor(tokenizer(text)["input_ids"]), tiles

    @property
    def image_id(self) -> int:
        return self.ours.special_tokens.image_id

    def logits(self, text: str, images: list[Image.Image]) -> Tensor:
        return self.theirs.logits(*self.inputs(text, images), self.image_id)


def case_of(folder: Path, form: str, **changes: Any) -> Case:
    write_tiny_nanovlm(folder, form, **changes)
    told = json.loads((folder / "config.json").read_text())
    theirs = Reference(load_file(folder / "model.safetensors"), told)
    return Case(form, folder, theirs, im.load(folder))


@pytest.fixture(scope="module", params=TOKENS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp(request.param), request.param)


def image(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- pixels, tokens, logits -----------------------------------------------------------------------

SIZES = [(32, 32), (20, 31), (50, 70), (70, 50), (200, 31), (33, 400), (97, 95), (64, 96), (35, 35)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_ids_are_those_of_nanovlm(case: Case, size: tuple[int, int]) -> None:
    for shown in (image(0, size), image(1, size).convert("L")):
        ids, tiles = case.inputs("a<image>b", [shown])
        batch = case.ours.prepare(["a<image>b"], [[shown]])
        assert batch.pixels is not None
        [own] = batch.pixels
        values = own.values if isinstance(own, Opened) else own[None]
        assert isinstance(values, Tensor)
        torch.testing.assert_close(values, tiles, rtol=0, atol=1e-6)
        assert torch.equal(batch.input_ids[0], ids)


PROMPTS: dict[str, tuple[str, list[Image.Image]]] = {
    "one": ("<|im_start|>user\n<image>What is it?", [image(1)]),
    "several": (
        "<image><image>Which? This:<image>\nNow?",
        [image(1), image(2, (40, 90)), image(3)],
    ),
    "one tile": ("<image>a", [image(4, (30, 20))]),
    "none": ("Only words.", []),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_and_greedy_tokens_are_those_of_nanovlm(case: Case, name: str) -> None:
    text, images = PROMPTS[name]
    batch = case.ours.prepare([text], [images])
    expected = case.logits(text, images)
    with torch.no_grad():
        got = case.ours(batch).logits[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    told = generate(case.ours, batch, max_new_tokens=NEW)[0].tolist()
    made = case.theirs.greedy(*case.inputs(text, images), case.image_id, NEW)
    end = case.ours.special_tokens.end_id
    assert told[: len(made)] == made[: made.index(end) + 1 if end in made else NEW]
    if images:  # they count: other ones have other logits
        shown = [image(9, own.size[::-1]) for own in images]
        assert (case.logits(text, shown) - expected).abs().max() > 1e-2


def test_a_batch_of_prompts_is_each_of_them(case: Case) -> None:
    texts, images = zip(*PROMPTS.values(), strict=True)
    batch = case.ours.prepare(list(texts), list(images), padding_side="left")
    with torch.no_grad():
        got = case.ours(batch).logits
    for row, (text, shown) in enumerate(PROMPTS.values()):
        expected = case.logits(text, shown)
        torch.testing.assert_close(got[row, -len(expected) :], expected, rtol=0, atol=TOLERANCE)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("whole", {"lm_tie_weights": False}),
    ("square", {"lm_tie_weights": False, "mp_pixel_shuffle_factor": 4, "mp_image_token_length": 1}),
    ("whole", {"resize_to_max_side_len": True}),
    ("tiles", {"max_img_size": 2 * TILE, "lm_re_base": 100000, "lm_n_kv_heads": 4}),
]


@pytest.mark.parametrize(("form", "changes"), OPTIONS, ids=str)
def test_every_supported_option(tmp_path: Path, form: str, changes: dict[str, Any]) -> None:
    case = case_of(tmp_path, form, **changes)
    text, shown = "a<image>b<image>c", [image(1, (20, 28)), image(2, (31, 80))]
    batch = case.ours.prepare([text], [shown])
    assert torch.equal(batch.input_ids[0], case.inputs(text, shown)[0])
    with torch.no_grad():
        got = case.ours(batch).logits[0]
    torch.testing.assert_close(got, case.logits(text, shown), rtol=0, atol=TOLERANCE)


def test_a_conversation_is_nanovlm_s(case: Case) -> None:
    if case.form == "bare":
        assert im.ask(case.ours, image(1), "Why?", max_new_tokens=1).prompt == (
            "<image>Question: Why? Answer:"  # as its generate.py writes it
        )
        return
    answer = im.ask(case.ours, image(1), "Why?", max_new_tokens=NEW)
    assert answer.prompt == (
        "<|im_start|>user\n<image>Why?<|im_end|>\n<|im_start|>assistant\n"  # images, then words
    )
    made = case.theirs.greedy(*case.inputs(answer.prompt, [image(1)]), case.image_id, NEW)
    end = case.ours.special_tokens.end_id
    kept = made[: made.index(end) if end in made else NEW]
    tokenizer = case.ours.language.tokenizer
    text = tokenizer.decode(kept, skip_special_tokens=True).rstrip("\ufffd").strip()
    assert answer.text == text


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 4, 6])
def test_no_image_has_more_tiles_than_asked_for(tmp_path: Path, most: int) -> None:
    case = case_of(tmp_path, "whole")
    model = im.load(case.folder, image_options={"max_tiles": most})
    medium: Any = model.media[0]
    for size in (*SIZES, (480, 640), (31, 33)):
        shown = medium.open(model, image(0, size))
        tiles = len(shown.values) - (len(shown.values) > 1)
        assert tiles <= most
        assert len(medium.layout(model, shown)) <= model.summary().text_positions
        free = case.theirs.tiles(image(0, size))[0]
        if len(free) - (len(free) > 1) <= most:  # of what fits, the most is taken
            torch.testing.assert_close(shown.values, free, rtol=0, atol=1e-6)
    usual = medium.open(model, image(0, (480, 640)))
    assert model.summary().usual_tokens == medium.layout(model, usual).holes


def test_a_row_that_only_rounding_would_add_is_left_out() -> None:
    from isthmus.model.media.placed_tiles import StretchedImages

    images = StretchedImages(tile=512, longest=4 * 512)
    sides = [images.grid((side, side), 4) for side in range(1, 4000)]
    assert all(max(grid) <= 4 for grid in sides)
    assert images.grid((1092, 1092), 4) == (4, 3)  # as nanoVLM, where such a row has its tokens


# --- the file -------------------------------------------------------------------------------------


def test_a_tied_table_is_read_under_either_name(tmp_path: Path) -> None:
    case = case_of(tmp_path, "square")
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["decoder.token_embedding.weight"] = state.pop("decoder.head.weight")
    del state["decoder.rotary_embd.inv_freq"]  # which no class of ours reads
    save_file(state, path)
    batch = case.ours.prepare(["<image>a"], [[image(1)]])
    with torch.no_grad():
        assert torch.equal(im.load(tmp_path)(batch).logits, case.ours(batch).logits)
    embedding = case.ours.language.input_embedding.weight
    assert embedding is case.ours.language.output_embedding.weight


def test_the_tokenizer_is_that_of_the_configuration(tmp_path: Path) -> None:
    """As in a repository, which has none of its own."""
    case = case_of(tmp_path / "model", "whole")
    (tmp_path / "words").mkdir()
    for path in (tmp_path / "model").glob("*token*"):
        shutil.move(path, tmp_path / "words" / path.name)
    with pytest.raises(CheckpointError, match="SmolLM2-360M-Instruct"):
        im.load(tmp_path / "model")
    told = {**case.theirs.told, "lm_tokenizer": str(tmp_path / "words")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(told))
    batch = im.load(f"hf:{tmp_path / 'model'}").prepare(["<image>a"], [[image(1)]])
    assert torch.equal(batch.input_ids[0], case.inputs("<image>a", [image(1)])[0])


def test_parts_alone_and_random_weights(tmp_path: Path) -> None:
    name = f"hf:{write_tiny_nanovlm(tmp_path)}"
    assert im.load_vision(name).config.final_norm
    assert im.load_language(name).width == 32
    plan = plan_of(name)
    assert plan is not None
    pixels = torch.rand(1, 3, TILE, TILE)
    random, read = im.load_vision(name, pretrained=False), im.load_vision(name)
    assert not torch.equal(random(pixels), read(pixels))


# --- the rest of the package ----------------------------------------------------------------------

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


def test_it_trains_and_a_run_starts_from_it(case: Case, tmp_path: Path) -> None:
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
    assert moved == {"connector.projection.weight"}
    batch = model.prepare(["<image>Output:"], [[image(1)]])
    init = TrainConfig(init=str(tmp_path / "run"))
    again = build(RunConfig(model=model.config, train=init, data=()), "cpu").eval()
    assert isinstance(again, im.VisionLanguageModel)
    with torch.no_grad():
        expected = model.eval()(batch).logits
        assert torch.equal(again(batch).logits, expected)
        torch.testing.assert_close(im.load(tmp_path / "run")(batch).logits, expected)


def test_half_precision(case: Case) -> None:
    model = im.load(case.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = model.prepare(["<image>a"], [[image(1)]])
    assert model(batch).logits.isfinite().all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vit_cls_flag": True}, "vit_cls_flag = True: expected False"),
    ({"lm_attn_scaling": 0.5}, "lm_attn_scaling = 0.5: expected 1.0"),
    ({"mp_image_token_length": 5}, "makes 4 x 4 patches to 5 visual tokens"),
    ({"mp_pixel_shuffle_factor": 3}, "squares of 3 x 3"),
    ({"max_img_size": SIDE * TILE + 1}, "expected a multiple of a tile, of 32 pixels"),
    ({"max_img_size": 9 * TILE}, "no token for row 1, column 9"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_what_our_parts_lack_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_tiny_nanovlm(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, **changes}))
    with pytest.raises(ConfigError, match=message):
        im.load(tmp_path)
