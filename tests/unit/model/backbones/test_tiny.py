"""Tiny parts are real parts: any text, any family, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isthmus.errors import ConfigError
from isthmus.model.backbones.tiny import (
    END,
    FAMILIES,
    PAD,
    START,
    VOCABULARY,
    byte_tokenizer,
    tiny_language_model,
    tiny_vit_model,
)
from isthmus.model.backbones.vision import load_vision

TOKENIZER = byte_tokenizer()
SPECIAL = ("<pad>", "<s>", "</s>")


# --- Tokenizer -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    if not any(token in text for token in SPECIAL):
        assert ids == list(text.encode())
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["", " a . b , c 's n't", "\0\t\r\n ", "점 ok 🦒", "a <s> b</s>"])
def test_text_that_tokenizers_like_to_tidy_up(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens_have_the_ids_above_the_bytes() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (
        256,
        257,
        258,
    )
    assert len(TOKENIZER) == VOCABULARY
    assert TOKENIZER.encode("a<s></s>b<pad>") == [97, START, END, 98, PAD]
    assert TOKENIZER.decode([START, 104, 105, END, PAD], skip_special_tokens=True) == "hi"


def test_batches_are_padded() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    batch = tokenizer(["abc", "d"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[97, 98, 99], [PAD, PAD, 100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["abc", "d"]


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "점 ok . <s>"
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.decode(again.encode(text)) == text


def test_generation_stops_at_a_string_and_streams_whole_letters() -> None:
    class Spells(transformers.LogitsProcessor):
        """Writes "점 ok." whatever the model thinks."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            spelled = "점 ok. and more".encode()
            forced = torch.full_like(scores, float("-inf"))
            forced[:, spelled[input_ids.shape[1] - 1]] = 0
            return forced

    pieces: list[str] = []

    class Streamer(transformers.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)

    ids = tiny_language_model().generate(
        torch.tensor([[START]]),
        attention_mask=torch.ones(1, 1, dtype=torch.long),
        max_new_tokens=20,
        do_sample=False,
        logits_processor=[Spells()],
        tokenizer=TOKENIZER,
        stop_strings=["ok."],
        streamer=Streamer(TOKENIZER, skip_prompt=True),
    )
    assert TOKENIZER.decode(ids[0], skip_special_tokens=True) == "점 ok."
    assert "".join(pieces) == "점 ok."
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


# --- Language models -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_and_is_the_same_every_time(family: str) -> None:
    state = torch.get_rng_state()
    first, second, other = (tiny_language_model(family, layers=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    ids = torch.tensor([list(b"a cat")])
    with torch.no_grad():
        a, b, c = (m(input_ids=ids).logits for m in (first, second, other))
    assert a.shape == (1, 5, VOCABULARY)
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert torch.isfinite(a).all()
    assert a.std(dim=-1).min() > 0.05  # tokens differ, so that greedy decoding has no ties
    assert first.config.num_hidden_layers == 2
    assert not first.training


def test_there_are_at_least_ten_families_of_their_own() -> None:
    kinds = {type(tiny_language_model(family, layers=1)) for family in FAMILIES}
    assert len(kinds) == len(FAMILIES) >= 10


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_sizes_are_as_asked(family: str) -> None:
    model = tiny_language_model(family, width=32, layers=3, heads=2, vocab=300)
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert model.config.num_hidden_layers == 3
    assert model.config.num_attention_heads == 2


def test_unknown_families_and_vocabularies_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match='did you mean "llama"'):
        tiny_language_model("lama")
    with pytest.raises(ConfigError, match="vocab is 256: expected at least 259"):
        tiny_language_model(vocab=256)


# --- Vision --------------------------------------------------------------------------------------


def test_tiny_vit_is_an_encoder_of_the_sizes_asked_for() -> None:
    state = torch.get_rng_state()
    encoder = load_vision(tiny_vit_model(width=16, depth=1, heads=4, size=48, patch=16, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert (encoder.shape.width, encoder.shape.tokens, encoder.shape.grid) == (16, 9, (3, 3))
    pixels = encoder.preprocess(Image.effect_noise((50, 40), 90).convert("RGB"))[None]
    model = tiny_vit_model(width=16, depth=1, heads=4, size=48, patch=16, seed=3)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), model.forward_features(pixels)[:, 1:])
    other = load_vision(tiny_vit_model(width=16, depth=1, heads=4, size=48, patch=16, seed=4))
    assert not torch.allclose(encoder(pixels), other(pixels))


def test_the_default_tiny_vit_is_the_one_that_has_a_name() -> None:
    encoder, named = load_vision(tiny_vit_model()), load_vision("tiny-vit")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder(pixels), named(pixels))
