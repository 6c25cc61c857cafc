"""Decoding against Transformers' own `generate`, plain loops and a beam search written out."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import isthmus as im
from isthmus import testing
from isthmus.generation.decode import generate, text_of
from isthmus.model.backbones.tiny import END, VOCABULARY, byte_tokenizer, tiny_language_model
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "last": im.CrossAttention(every=2, heads=2, head_dim=8),
    "previous": im.CrossAttention(every=2, heads=2, head_dim=8, sees="previous"),
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "penalised beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.3},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 40},
}
# with one id alone, a random model hardly ever ends; with these, rows end one after another
MANY_ENDS = [*range(0, VOCABULARY - 3, 5), END]
LETTERS = [ord(c) for c in string.ascii_lowercase + " "]
LONG: dict[str, Any] = {"max_new_tokens": 24}
ONLY_LETTERS: dict[str, Any] = {
    "suppress_tokens": [i for i in range(VOCABULARY) if i not in LETTERS]
}


def joined(family: str, fusion: str, ends: list[int] | None = None) -> VisionLanguageModel:
    """A model with open gates; its parts are seeded, and so is every test."""
    language = tiny_language_model(family)
    if ends is not None:
        language.generation_config.eos_token_id = ends
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
    model = im.compose(
        "tiny-vit", language, connector, FUSIONS[fusion], tokenizer=byte_tokenizer()
    ).eval()
    testing.open_gates(model)
    # a copy of the end of text's at first, and two equal logits have no order
    torch.nn.init.normal_(model.special_tokens.output_rows, std=0.2)
    return model


def images(count: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7)))


TEXTS = ["<image>one<|endofchunk|>a<image>two", "no image here", "so <image>three"]


def rows_of_all_kinds(model: VisionLanguageModel) -> tuple[Batch, list[Batch]]:
    """Rows with 2, 0 and 1 images as one padded batch, and each alone."""
    own = images(3)
    per_row = [own[:2], [], own[2:]]
    alone = [model.prepare([t], [p]) for t, p in zip(TEXTS, per_row, strict=True)]
    return model.prepare(TEXTS, per_row), alone


def assert_row(got: Tensor, expected: Tensor, pad_id: int) -> None:
    """Equal ids; the row of a batch may be padded behind its end."""
    assert got[: len(expected)].tolist() == expected.tolist()
    assert (got[len(expected) :] == pad_id).all()


# --- Text only ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [[END], MANY_ENDS], ids=["one end", "many ends"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("family", "fusion"),
    [("llama", "last"), ("gpt2", "inline"), ("opt", "previous"), ("gemma3", "last")],
)
def test_text_alone_decodes_as_the_bare_model(
    family: str, fusion: str, mode: str, ends: list[int]
) -> None:
    """Of two prompts of different length, so that one is padded."""
    bare = tiny_language_model(family)  # no hook of ours was ever near it
    bare.generation_config.eos_token_id = ends
    model = joined(family, fusion, ends)
    text = model.prepare(["Only words, and many of them.", "few"])
    torch.manual_seed(5)
    expected = bare.generate(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        max_new_tokens=10,
        **MODES[mode],
    )
    torch.manual_seed(5)
    got = generate(model, text, max_new_tokens=10, **MODES[mode])
    assert torch.equal(got, expected[:, text.input_ids.shape[1] :])


# --- With images -----------------------------------------------------------------------------


@torch.no_grad()
def greedy_loop(model: VisionLanguageModel, batch: Batch, steps: int) -> Tensor:
    """The likeliest token again and again, everything computed anew each time; one row."""
    ends = {*model.language.end_ids(), model.special_tokens.end_id}
    ids, start = batch.input_ids, batch.input_ids.shape[1]
    for _ in range(steps):
        chosen = (
            model(Batch(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels))
            .logits[:, -1]
            .argmax(dim=-1)
        )
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        if int(chosen) in ends:
            break
    return ids[0, start:]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_equals_a_plain_loop(family: str, fusion: str) -> None:
    model = joined(family, fusion, MANY_ENDS)
    batch, alone = rows_of_all_kinds(model)
    ids = generate(model, batch, max_new_tokens=12)
    expected = [greedy_loop(model, row, 12) for row in alone]
    for got, row in zip(ids, expected, strict=True):
        assert_row(got, row, model.pad_id)
    assert len({len(row) for row in expected}) > 1  # some ended before others


@torch.no_grad()
def beam_search(model: VisionLanguageModel, batch: Batch, beams: int, steps: int) -> Tensor:
    """The best of `beams` continuations of exactly `steps` tokens, without a cache; one row."""
    banned = [*model.language.end_ids(), model.special_tokens.end_id]
    kept: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown: list[tuple[float, list[int]]] = []
        for score, tail in kept:
            ids = torch.cat([batch.input_ids, torch.tensor([tail]).long().view(1, -1)], dim=1)
            logits = model(
                Batch(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels)
            ).logits[0, -1]
            log_probs = logits.log_softmax(dim=-1)
            log_probs[[i for i in banned if i < len(log_probs)]] = float("-inf")
            best = log_probs.topk(beams)
            grown += [
                (score + p, [*tail, i])
                for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        kept = sorted(grown, reverse=True)[:beams]
    return torch.tensor(kept[0][1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_beams_equal_a_search_written_out(fusion: str) -> None:
    model = joined("llama", fusion)
    batch, alone = rows_of_all_kinds(model)
    ids = generate(model, batch, max_new_tokens=6, min_new_tokens=6, num_beams=3)
    expected = [beam_search(model, row, 3, 6) for row in alone]
    assert ids.tolist() == [row.tolist() for row in expected]
    greedy = generate(model, batch, max_new_tokens=6, min_new_tokens=6)
    assert not torch.equal(ids, greedy)  # else the search would show nothing


@pytest.mark.parametrize("mode", ["beams", "penalised beams"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_beams_of_a_batch_equal_beams_of_each_row(fusion: str, mode: str) -> None:
    model = joined("llama", fusion, MANY_ENDS)
    batch, alone = rows_of_all_kinds(model)
    ids = generate(model, batch, max_new_tokens=8, **MODES[mode])
    expected = [
        row for one in alone for row in generate(model, one, max_new_tokens=8, **MODES[mode])
    ]
    for got, row in zip(ids, expected, strict=True):
        assert_row(got, row, model.pad_id)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_several_samples_of_a_row_equal_the_row_repeated(fusion: str) -> None:
    model = joined("llama", fusion, MANY_ENDS)
    own = images(3)
    per_row = [own[:2], [], own[2:]]
    batch = model.prepare(TEXTS, per_row)
    repeated = model.prepare(
        [t for t in TEXTS for _ in range(2)], [p for p in per_row for _ in range(2)]
    )
    torch.manual_seed(5)
    expected = generate(model, repeated, max_new_tokens=8, **MODES["sampling"])
    torch.manual_seed(5)
    got = generate(model, batch, max_new_tokens=8, num_return_sequences=2, **MODES["sampling"])
    assert torch.equal(got, expected)
    assert not torch.equal(got[::2], got[1::2])


# --- Stop strings ------------------------------------------------------------------------------


def test_a_stop_string_ends_its_row_alone() -> None:
    model = joined("llama", "last")
    batch, _ = rows_of_all_kinds(model)
    options = {"max_new_tokens": 16, "min_new_tokens": 16, **MODES["sampling"], **ONLY_LETTERS}
    torch.manual_seed(2)
    free = generate(model, batch, **options)
    texts = [model.special_tokens.decode(row) for row in free]
    stop = texts[0][3:6]  # what the first row alone says, and says once
    assert [text.find(stop) for text in texts] == [3, -1, -1]
    torch.manual_seed(2)
    ids = generate(model, batch, stop=(stop,), **options)
    assert ids[0].tolist() == [*free[0, :6].tolist(), *[model.pad_id] * 10]
    assert torch.equal(ids[1:], free[1:])
    assert text_of(model, ids[0], (stop,)) == texts[0][:3].strip()


def test_the_earliest_of_several_stop_strings_cuts_the_text() -> None:
    model = joined("llama", "last")
    own = images(1)
    whole = ask_letters(model, own, stop=()).text
    assert len(whole) > 12
    late, early = whole[9:11], whole[4:6]
    expected = whole[: min(whole.index(late), whole.index(early))].strip()
    answer = ask_letters(model, own, stop=(late, early))
    assert answer.text == expected
    assert answer.new_tokens < 24


def test_text_is_cut_before_the_first_of_repeated_stops() -> None:
    ids = torch.tensor(list(b" one; two. three; four. "))
    assert text_of(joined("llama", "last"), ids, (".", ";")) == "one"


# --- Streaming ---------------------------------------------------------------------------------


def ask_letters(model: VisionLanguageModel, own: Any, **options: Any) -> im.Answer:
    with says_only(model, LETTERS):
        return im.ask(model, opened(own), "What?", **{**LONG, **options})


@contextmanager
def says_only(model: VisionLanguageModel, tokens: list[int]) -> Iterator[None]:
    """The model writes nothing but these tokens, so that no answer ends by itself."""
    allowed = torch.tensor(tokens)

    def hook(module: Any, arguments: Any, output: Any) -> None:
        others = torch.ones(output.logits.shape[-1], dtype=torch.bool)
        others[allowed] = False
        output.logits[..., others] = -1e4

    handle = model.language.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def opened(own: list[Tensor]) -> list[Any]:
    """Images as files hold them."""
    from PIL import Image

    return [
        Image.fromarray((p.sigmoid() * 255).byte().permute(1, 2, 0).contiguous().numpy())
        for p in own
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("fusion", ["inline", "last"])
def test_streamed_pieces_are_the_answer(fusion: str, count: int) -> None:
    """Of any bytes at all, so that tokens are parts of characters and whole answers are odd."""
    model = joined("llama", fusion)
    own = opened(images(count))
    for question in ("What?", "Where is it?", "Who, then?"):
        with says_only(model, [i for i in range(VOCABULARY) if i != END]):
            pieces = list(im.stream(model, own, question, **LONG))
            answer = im.ask(model, own, question, **LONG).text
        assert "".join(pieces) == answer
        assert len(answer) > 2


@pytest.mark.parametrize("place", [slice(0, 1), slice(5, 6), slice(4, 9), slice(17, 21)])
def test_streaming_stops_where_asking_does(place: slice) -> None:
    """At strings of one letter and of more, which arrive in several pieces."""
    model, own = joined("llama", "last"), images(1)
    whole = ask_letters(model, own, stop=()).text
    stop = ("never said", whole[place])
    expected = ask_letters(model, own, stop=stop).text
    assert expected == whole[: whole.index(whole[place])].strip()
    with says_only(model, LETTERS):
        pieces = list(im.stream(model, opened(own), "What?", stop=stop, **LONG))
    assert "".join(pieces) == expected


def test_an_answer_comes_in_pieces() -> None:
    model, own = joined("llama", "last"), opened(images(1))
    with says_only(model, [97, 98, 32]):
        pieces = list(im.stream(model, own, "What?", **LONG))
    assert len([p for p in pieces if p]) > 1


def test_a_failure_while_streaming_reaches_the_reader() -> None:
    model, own = joined("llama", "last"), opened(images(1))
    handle = model.language.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(im.stream(model, own, "What?"))
    handle.remove()
    assert im.ask(model, own, "What?", max_new_tokens=2).new_tokens == 2
