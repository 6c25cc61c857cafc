"""Media and layouts: visual tokens in any number, with tokens between them, and a third medium."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import isthmus as im
from isthmus import testing
from isthmus.errors import ConfigError, PromptError
from isthmus.generation.engine import Engine
from isthmus.generation.images import content_of
from isthmus.generation.server import GenerationRequest, ServingEngine
from isthmus.model.layout import HOLE, IMAGE, Layout, expand, starts
from isthmus.model.media.base import Medium, Opened, Parts, connected
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "last": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "previous": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, sees="previous"),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5),
}
COMMA, NEWLINE = ord(","), ord("\n")
TOKENS = 3
ANSWERS = ["a", " bc"]
MOST = 3


class Page:
    """Images in tiles, as many as fit side by side: a comma before each, a newline at the end."""

    name = "page"
    varies = True

    def takes(self, source: Any) -> bool:
        return isinstance(source, Image.Image) or (isinstance(source, Tensor) and source.ndim == 4)

    def open(self, parts: Parts, source: Any) -> Tensor:
        if isinstance(source, Tensor):
            return source
        tiles = [source.crop((x, 0, x + 32, 32)) for x in range(0, source.width, 32)]
        return torch.stack([parts.vision.preprocess(tile) for tile in tiles])

    def encoding(self, parts: Parts) -> None:
        return None

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        features: Tensor = parts.vision(opened.flatten(0, 1))
        return features.unflatten(0, opened.shape[:2])

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        tokens = connected(parts, features.flatten(0, 1))
        return tokens.unflatten(0, features.shape[:2]).flatten(1, 2)

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        assert opened is not None
        place = (HOLE,) * TOKENS if parts.fusion.in_text else (IMAGE,)
        tiles = len(opened) if parts.fusion.in_text else 1
        return Layout(((COMMA, *place) * tiles) + (NEWLINE,))


class Board:
    """Images in rows and columns of tiles: a newline after each row.

    Six tiles are two rows or three, which their number does not tell.
    """

    name = "board"
    varies = True

    def takes(self, source: Any) -> bool:
        return isinstance(source, Image.Image)

    def open(self, parts: Parts, source: Any) -> Opened:
        if isinstance(source, Opened):
            return source
        columns, rows = source.width // 32, source.height // 32
        corners = [(32 * c, 32 * r) for r in range(rows) for c in range(columns)]
        tiles = [source.crop((x, y, x + 32, y + 32)) for x, y in corners]
        pixels = torch.stack([parts.vision.preprocess(tile) for tile in tiles])
        return Opened(self.name, pixels, (rows, columns))

    def encoding(self, parts: Parts) -> None:
        return None

    def features(self, parts: Parts, opened: Opened) -> Tensor:
        features: Tensor = parts.vision(opened.values.flatten(0, 1))
        return features.unflatten(0, opened.values.shape[:2])

    def connect(self, parts: Parts, features: Opened) -> Tensor:
        rows, columns = features.told
        assert features.values.shape[1] == rows * columns
        tokens = connected(parts, features.values.flatten(0, 1))
        grid: Any = tokens.unflatten(0, (-1, rows, columns))
        return grid.transpose(1, 2).flatten(1, 3)  # column by column, which the grid alone tells

    def layout(self, parts: Parts, opened: Opened) -> Layout:
        rows, columns = opened.told
        place = (HOLE,) * TOKENS if parts.fusion.in_text else (IMAGE,)
        each = columns if parts.fusion.in_text else 1
        return Layout(((*place * each, NEWLINE) * rows) if parts.fusion.in_text else place)


class Sound(nn.Module):
    """Sounds: samples (S,), an encoder and a connector of their own, a token each 8 samples."""

    name = "sound"
    varies = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 5, kernel_size=8, stride=8)
        self.connector = nn.Linear(5, width)

    def takes(self, source: Any) -> bool:
        return isinstance(source, Tensor) and source.ndim == 1

    def open(self, parts: Parts, source: Any) -> Tensor:
        opened: Tensor = source
        return opened

    def encoding(self, parts: Parts) -> None:
        return None

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        found: Tensor = self.encoder(opened[:, None])
        return found.transpose(1, 2)

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        tokens: Tensor = self.connector(features)
        return tokens

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        assert opened is not None
        return parts.fusion.layout(len(opened) // 8)


def made(fusion: str) -> VisionLanguageModel:
    torch.manual_seed(0)
    connector = im.Resampler(latents=TOKENS, depth=1, heads=2, head_dim=8)
    model = im.compose("tiny-vit", "tiny-lm", connector, FUSIONS[fusion])
    testing.open_gates(model)
    with torch.no_grad():  # weights far from zero, so that whatever is wrong shows
        for parameter in model.fusion.parameters():  # type: ignore[attr-defined]
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module", params=FUSIONS)
def paged(request: pytest.FixtureRequest) -> VisionLanguageModel:
    model = made(request.param)
    model.add_medium(Page())
    return model


@pytest.fixture(scope="module", params=FUSIONS)
def tiled(request: pytest.FixtureRequest) -> VisionLanguageModel:
    model = made(request.param)
    model.add_medium(Board())
    return model


@pytest.fixture(scope="module", params=FUSIONS)
def heard(request: pytest.FixtureRequest) -> VisionLanguageModel:
    model = made(request.param)
    model.add_medium(Sound(model.fusion.visual_width))
    return model


def page(tiles: int, seed: int, rows: int = 1) -> Image.Image:
    noise = torch.randint(
        0, 256, (32 * rows, 32 * tiles, 3), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(noise.to(torch.uint8).numpy())


def sound(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


PAGES = [page(1, 0), page(2, 1), page(3, 2), page(2, 3)]
BOARDS = [page(3, 0, rows=2), page(2, 1, rows=3), page(1, 2), page(2, 3, rows=3)]
SOUNDS = [sound(8, 0), sound(16, 1), sound(40, 2)]
MIXED = [*SOUNDS, torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(4))]


# --- A layout alone -----------------------------------------------------------------------------


def test_expanded_ids_tell_where_each_layout_begins() -> None:
    chance = random.Random(0)
    for _ in range(100):
        ids, layouts, expected = [], [], []
        length = 0
        for _ in range(chance.randint(1, 8)):
            if chance.random() < 0.5:
                inner = [chance.choice([HOLE, 5, 6]) for _ in range(chance.randint(0, 3))]
                at = chance.randint(0, len(inner))
                layout = Layout((*inner[:at], HOLE, *inner[at:]))
                layouts.append(layout)
                expected.append(length)
                length += len(layout)
                ids.append(99)
            else:  # ordinary tokens that also stand in layouts
                ids.append(chance.choice([5, 6]))
                length += 1
        expanded = expand(ids, layouts, 99)
        assert len(expanded) == length
        assert starts(expanded, layouts, 99) == expected


@pytest.mark.parametrize("ids", [(), (5, 6), (HOLE, -3)])
def test_a_layout_without_a_place_is_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one place"):
        Layout(ids)


# --- Pages and sounds in a batch ----------------------------------------------------------------


def rows_of(sources: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    first, second, third, *_ = sources
    texts = ["<image>one<|endofchunk|>a<image>two", "words", "so <image>three"]
    return texts, [[first, second], [], [third]]


@torch.no_grad()
def check_rows_alone(model: VisionLanguageModel, sources: Sequence[Any]) -> None:
    texts, attached = rows_of(sources)
    for side in ("left", "right"):
        batch = model.prepare(texts, attached, padding_side=side)
        assert batch.layouts is not None or not model.fusion.in_text
        together = model(batch).logits
        for i, text in enumerate(texts):
            alone = model(model.prepare([text], [attached[i]])).logits[0]
            kept = together[i][batch.attention_mask[i].bool()][:, : alone.shape[-1]]
            finite = alone.isfinite()
            torch.testing.assert_close(kept[finite], alone[finite], atol=1e-4, rtol=0)


def test_a_row_of_pages_equals_the_row_alone(paged: VisionLanguageModel) -> None:
    check_rows_alone(paged, PAGES)


def test_a_row_of_sounds_equals_the_row_alone(heard: VisionLanguageModel) -> None:
    check_rows_alone(heard, SOUNDS)


def test_a_row_of_boards_equals_the_row_alone(tiled: VisionLanguageModel) -> None:
    check_rows_alone(tiled, BOARDS)


def test_boards_of_as_many_tiles_are_told_apart() -> None:
    model = made("inline")
    model.add_medium(Board())
    wide, tall = (model.media[0].open(model, board) for board in BOARDS[:2])
    assert isinstance(wide, Opened)
    assert isinstance(tall, Opened)
    assert wide.values.shape == tall.values.shape
    batch = model.prepare(["<image>x<image>y"], [[wide, tall]]).to("cpu")
    newlines = [i for i, token in enumerate(batch.input_ids[0].tolist()) if token == NEWLINE]
    assert newlines == [9, 19, 27, 34, 41]
    # what is told is part of what an image is to a cache
    turned = replace(wide, told=(3, 2))
    assert len({content_of(own)[0] for own in (wide, turned, tall)}) == 3
    assert content_of(wide)[1] is wide
    with pytest.raises(PromptError, match='an Opened of "page" is of no known medium'):
        model.prepare(["<image>"], [[replace(wide, medium="page")]])


def test_sounds_and_images_stand_in_one_prompt(heard: VisionLanguageModel) -> None:
    check_rows_alone(heard, [MIXED[3], SOUNDS[2], SOUNDS[0]])
    batch = heard.prepare(["<image>a<image>b"], [[MIXED[3], SOUNDS[2]]])
    visual = heard.visual_tokens(batch)
    assert visual is not None
    assert [len(tokens) for tokens in visual] == [TOKENS, 5]


@torch.no_grad()
def test_each_tile_counts_and_separators_stand_between(paged: VisionLanguageModel) -> None:
    batch = paged.prepare(["<image>x"], [[PAGES[2]]])
    ids, image = batch.input_ids[0].tolist(), paged.special_tokens.image_id
    tile = [COMMA, *[image] * TOKENS] if paged.fusion.in_text else [COMMA, image]
    tiles = 3 if paged.fusion.in_text else 1
    assert ids == [*paged.language.start_ids, *tile * tiles, NEWLINE, ord("x")]
    pixels = batch.pixels[0].clone()  # type: ignore[index]
    pixels[2] += 1
    logits, changed = paged(batch).logits, paged(replace(batch, pixels=(pixels,))).logits
    own = slice(0, paged.language.vocab_rows)
    assert not torch.allclose(logits[0, -1, own], changed[0, -1, own])


def test_a_swapped_pair_of_pages_is_refused() -> None:
    """Their tokens are as many in all."""
    model = made("inline")
    model.add_medium(Page())
    batch = model.prepare(["<image><image>x"], [[PAGES[0], PAGES[2]]])
    swapped = replace(batch, pixels=tuple(reversed(batch.pixels)))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="image 0 became 9 visual tokens, and its layout has 3"):
        model(swapped)


def test_what_no_medium_takes_is_refused(heard: VisionLanguageModel) -> None:
    with pytest.raises(PromptError, match=r"a Tensor \(2, 2\) is of no known medium \(sound, clip"):
        heard.prepare(["<image>"], [[torch.zeros(2, 2)]])


# --- Decoding -----------------------------------------------------------------------------------


@torch.inference_mode()
def naive(model: VisionLanguageModel, prompt: Prompt) -> tuple[list[float], list[int]]:
    """Scores of the answers and the greedy tokens, from passes over the whole text."""
    batch = model.prepare([prompt.text], [prompt.images])
    start = batch.input_ids.shape[1]

    def known(new: Sequence[int]) -> Tensor:
        ids = torch.cat([batch.input_ids, torch.tensor([list(new)], dtype=torch.long)], dim=1)
        whole = replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids))
        return model(whole).logits[0, start - 1 :].float().log_softmax(dim=-1)

    scores = []
    for answer in ANSWERS:
        ids = model.special_tokens.encode(answer)
        found = known(ids[:-1])
        scores.append(sum(float(found[n, i]) for n, i in enumerate(ids)))
    greedy = [int(known([])[-1].argmax())]
    ends = {*model.language.end_ids(), model.special_tokens.end_id}
    while len(greedy) < MOST and greedy[-1] not in ends:
        greedy.append(int(known(greedy)[-1].argmax()))
    return scores, greedy


def random_prompt(chance: random.Random, sources: Sequence[Any]) -> Prompt:
    text, attached = "", []
    for _ in range(chance.randint(1, 5)):
        if chance.random() < 0.6:
            text += "<image>"
            attached.append(chance.choice(sources))
        else:
            text += chance.choice(("Q: a", ",", "\nA", "A:", "<|endofchunk|>"))
    return Prompt(text, tuple(attached), shared=chance.randint(0, len(text)))


def check_engines(model: VisionLanguageModel, sources: Sequence[Any]) -> None:
    chance = random.Random(0)
    prompts = [random_prompt(chance, sources) for _ in range(16)]
    expected = [naive(model, prompt) for prompt in prompts]
    for memory in (1 << 30, 1 << 14):
        engine = Engine(model, memory=memory, batch_size=3)
        scores = engine.score(prompts, ANSWERS)
        texts = engine.generate(prompts, max_new_tokens=MOST)
        for prompt, wanted, got, text in zip(prompts, expected, scores, texts, strict=True):
            assert got.logprobs == pytest.approx(wanted[0], abs=1e-4), prompt
            assert list(text.completions[0].ids) == wanted[1], prompt
    ends = {*model.language.end_ids(), model.special_tokens.end_id}
    with ServingEngine(model, memory=1 << 15, prefill_tokens=4, max_batch=4) as server:
        tickets = [
            server.submit(GenerationRequest(prompt=p, max_new_tokens=MOST, logprobs=0))
            for p in prompts
        ]
        for ticket, wanted in zip(tickets, expected, strict=True):
            said = [token.token_id for token in ticket.result()[1]]
            assert said == [i for i in wanted[1] if i not in ends]


def test_both_engines_say_of_pages_what_the_model_says(paged: VisionLanguageModel) -> None:
    check_engines(paged, PAGES)


def test_both_engines_say_of_boards_what_the_model_says(tiled: VisionLanguageModel) -> None:
    check_engines(tiled, BOARDS)
    check_engines(tiled, [tiled.media[0].open(tiled, board) for board in BOARDS])


def test_both_engines_say_of_sounds_what_the_model_says(heard: VisionLanguageModel) -> None:
    check_engines(heard, MIXED)


def test_pages_are_generated_from_by_transformers_too(paged: VisionLanguageModel) -> None:
    prompt = Prompt("<image>a<image>b", (PAGES[0], PAGES[2]))
    batch = paged.prepare([prompt.text], [prompt.images])
    ids = im.generate(paged, batch, max_new_tokens=MOST)[0].tolist()
    assert ids == naive(paged, prompt)[1]


# --- A third medium is a part of the model ------------------------------------------------------


def test_a_medium_moves_learns_and_is_copied_with_its_model() -> None:
    model = made("inline")
    medium = Sound(model.fusion.visual_width)
    assert isinstance(medium, Medium)
    model.add_medium(medium)
    batch = model.prepare(["<image>abc", "no", "<image>d"], [SOUNDS[:1], [], SOUNDS[1:2]])
    labels = batch.input_ids.masked_fill(
        (batch.attention_mask == 0) | (batch.input_ids == model.special_tokens.image_id), -100
    )
    loss = model(replace(batch, labels=labels)).loss
    assert loss is not None
    loss.backward()
    assert {"sound_medium.connector.weight"} <= model.trained_parameters().keys()
    testing.check_gradients(medium)
    with torch.no_grad():
        expected = model(batch).logits
        other = copy.deepcopy(model)
        assert torch.equal(other(batch).logits, expected)
        medium.connector.weight.zero_()
        assert torch.equal(other(batch).logits, expected)
        assert not torch.equal(model(batch).logits, expected)


def test_a_clip_is_opened_frame_by_frame() -> None:
    torch.manual_seed(0)
    connector = im.Resampler(latents=TOKENS, depth=1, heads=2, head_dim=8, max_frames=2)
    model = im.compose("tiny-vit", "tiny-lm", connector)
    frames = (page(1, 5), page(1, 6))
    pixels = torch.stack([model.vision.preprocess(frame) for frame in frames])
    by_frames, by_pixels = (model.prepare(["<image>a"], [[c]]) for c in (frames, pixels))
    with torch.no_grad():
        assert torch.equal(model(by_frames).logits, model(by_pixels).logits)


def test_an_image_is_one_in_every_form(tmp_path: Any) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    path = tmp_path / "a.png"
    image = Image.linear_gradient("L").convert("RGB")
    image.save(path)
    forms = [image, path, str(path), path.read_bytes(), bytearray(path.read_bytes())]
    expected = model(model.prepare(["<image>What?"], [[image]])).logits
    scores = []
    for form in forms:
        assert torch.equal(model(model.prepare(["<image>What?"], [[form]])).logits, expected)
        prompt = Prompt("<image>What?", (form,))
        scores.append(Engine(model).score([prompt], ANSWERS)[0].logprobs)
    assert all(score == scores[0] for score in scores)


@pytest.mark.parametrize("frames", [2, 16])  # 16 is as many as an image has patches
def test_a_connector_that_keeps_frames_apart_takes_no_clip(frames: int) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.MLP(), im.Inline())
    clip = [Image.new("RGB", (32, 32), (n, 0, 0)) for n in range(frames)]
    with pytest.raises(PromptError, match=f"a clip of {frames} frames"):
        im.Engine(model).generate([im.Prompt("<image>What is it?", (clip,))], max_new_tokens=2)
    with pytest.raises(PromptError, match=f"a clip of {frames} frames"):
        model(model.prepare(["<image>What is it?"], [[clip]]))
