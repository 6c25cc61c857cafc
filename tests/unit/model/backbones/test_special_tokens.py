from __future__ import annotations

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.errors import ConfigError, PromptError
from isthmus.generation.decode import generate, text_of
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model


@pytest.fixture
def model() -> im.VisionLanguageModel:
    return im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))


PICTURE = torch.zeros(3, 32, 32)


def test_the_embedding_and_the_tokenizer_stay_as_they_are(model: im.VisionLanguageModel) -> None:
    fresh = tiny_language_model()
    assert model.language.input_embedding.weight.shape == fresh.get_input_embeddings().weight.shape
    assert len(model.language.tokenizer) == len(byte_tokenizer())
    assert model.special_tokens.image_id == model.language.vocab_rows


def test_tags_become_the_two_ids(model: im.VisionLanguageModel) -> None:
    tokens = model.special_tokens
    ids = tokens.encode("a<image>b<|endofchunk|>")
    assert ids == [ord("a"), tokens.image_id, ord("b"), tokens.end_id]
    assert tokens.decode(ids) == "ab"


def test_their_rows_come_in_and_all_others_are_the_models(model: im.VisionLanguageModel) -> None:
    tokens = model.special_tokens
    ids = torch.tensor([[5, tokens.image_id, 7, tokens.end_id]])
    got = tokens.embed(ids)
    table = model.language.input_embedding.weight
    assert torch.equal(got[0, [0, 2]], table[[5, 7]])
    assert torch.equal(got[0, [1, 3]], tokens.input_rows)


def test_only_the_rows_learn(model: im.VisionLanguageModel) -> None:
    batch = model.prepare(["<image>a"], [[PICTURE]])
    ids = torch.cat([batch.input_ids, torch.tensor([[model.special_tokens.end_id]])], dim=1)
    loss = model(
        im.Batch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixels=batch.pixels,
            labels=ids.clamp(min=0),
        )
    ).loss
    assert loss is None or not loss.isnan()
    labels = ids.masked_fill(ids == model.special_tokens.image_id, -100)
    loss = model(
        im.Batch(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels, labels=labels
        )
    ).loss
    assert loss is not None
    loss.backward()
    assert model.special_tokens.input_rows.grad is not None
    assert model.special_tokens.input_rows.grad[0].abs().max() > 0
    assert model.special_tokens.output_rows.grad is not None
    assert model.special_tokens.output_rows.grad.abs().max() > 0
    assert model.language.input_embedding.weight.grad is None


@torch.no_grad()
def test_image_is_never_produced_even_if_its_row_would_win(model: im.VisionLanguageModel) -> None:
    model.special_tokens.input_rows[0] = 100.0
    batch = model.prepare(["<image>a"], [[PICTURE]])
    logits = model(batch).logits
    assert (logits[..., model.special_tokens.image_id] == float("-inf")).all()
    ids = generate(model, batch, max_new_tokens=20, do_sample=True, temperature=5.0, top_k=0)
    assert (ids != model.special_tokens.image_id).all()


@torch.no_grad()
def test_a_row_ends_while_others_go_on(model: im.VisionLanguageModel) -> None:
    tokens = model.special_tokens
    hidden = {}
    head = model.language.output_embedding
    handle = head.register_forward_pre_hook(lambda m, a: hidden.update(last=a[0][:, -1]))
    batch = model.prepare(["<image>one", "two words"], [[PICTURE], []])
    model(batch)
    handle.remove()
    tokens.output_rows[0] = 100 * hidden["last"][0]  # the first row's next token is the end
    ids = generate(model, batch, max_new_tokens=4, min_new_tokens=0)
    assert ids[0, 0] == tokens.end_id
    assert text_of(model, ids[0]) == ""
    alone = generate(model, model.prepare(["two words"]), max_new_tokens=4)
    assert torch.equal(ids[1, : alone.shape[1]], alone[0])


def test_a_head_of_another_size_is_refused() -> None:
    language = tiny_language_model()
    language.lm_head = nn.Linear(64, 300, bias=False)
    with pytest.raises(ConfigError, match="300 rows"):
        im.compose("tiny-vit", language, im.Linear(), tokenizer=byte_tokenizer())


def test_tags_and_images_must_match(model: im.VisionLanguageModel) -> None:
    with pytest.raises(PromptError, match="2 <image> tags and 1 images"):
        model.prepare(["<image><image>"], [[PICTURE]])
    batch = model.prepare(["<image>a"], [[PICTURE]])
    with pytest.raises(PromptError, match="0 images and 1 <image> tokens"):
        model(im.Batch(input_ids=batch.input_ids, attention_mask=batch.attention_mask))


@torch.no_grad()
def test_a_soft_cap_behind_the_head_lifts_nothing() -> None:
    """Gemma 2 squeezes its logits into [-30, 30], and so would make -inf a number."""
    model = im.compose(
        "tiny-vit",
        tiny_language_model("gemma2"),
        im.Linear(),
        im.CrossAttention(every=2),
        tokenizer=byte_tokenizer(),
    )
    tokens = model.special_tokens
    batch = model.prepare(["<image>one", "two words"], [[PICTURE], []])
    with model.in_sight(batch) as embeddings:  # as `generate` sees it too
        logits = model.language.model(
            inputs_embeds=embeddings, attention_mask=batch.attention_mask
        ).logits
    assert logits[..., tokens.image_id].isneginf().all()
    assert logits[0, :, tokens.end_id].abs().max() <= 30
    assert logits[1, :, tokens.end_id].isneginf().all()
