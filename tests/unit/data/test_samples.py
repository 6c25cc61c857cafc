from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.data.records import Record
from isthmus.data.samples import Sample, collate, conversation_spans, document_spans, tokenize
from isthmus.errors import ConfigError, PromptError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.span_tokens import pieces
from isthmus.prompts.prompt import Example, joined
from isthmus.prompts.templates import TEMPLATES

A, B = FileRef(Path("a.png")), FileRef(Path("b.png"))


@pytest.fixture(scope="module", params=["inline", "cross_attention"])
def model(request: pytest.FixtureRequest) -> im.VisionLanguageModel:
    fusion = im.Inline() if request.param == "inline" else im.CrossAttention(every=2, heads=2)
    return im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4), fusion)


def learned_text(model: im.VisionLanguageModel, sample: Sample) -> str:
    ids = [i for i, flag in zip(sample.ids, sample.learned, strict=True) if flag]
    end = model.special_tokens.end_id
    return "".join("<end>" if i == end else model.language.tokenizer.decode([i]) for i in ids)


def test_a_chat_learns_the_answers_and_nothing_else(model: im.VisionLanguageModel) -> None:
    turns = (Example(A, "What?", "a cat"), Example((), "Sure?", "yes"), Example(B, "And?", "a dog"))
    sample = tokenize(model, Record(turns))
    assert learned_text(model, sample) == " a cat<end> yes<end> a dog<end>"
    assert sample.layouts == (model.layout, model.layout)
    assert sample.ids.count(model.special_tokens.image_id) == 2 * model.layout.places


def test_golden_chat() -> None:
    turns = (Example(A, "What?", "a cat"), Example((), "Sure?", "yes"))
    spans = conversation_spans(Record(turns), TEMPLATES["plain"])
    assert [(joined(piece), learned) for piece, learned in pieces(spans)] == [
        ("<image>Question: What? Answer:", False),
        (" a cat", True),
        ("<|endofchunk|>", True),
        ("Question: Sure? Answer:", False),
        (" yes", True),
        ("<|endofchunk|>", True),
    ]


def test_a_document_learns_its_text(model: im.VisionLanguageModel) -> None:
    record = Record(text="Hi. <image>A cat. <image>A dog.", images_in_text=(A, B))
    sample = tokenize(model, record)
    # the very first token is predicted by nothing
    assert learned_text(model, sample) == "i. <end>A cat. <end>A dog.<end>"


def test_the_next_image_of_each_text() -> None:
    spans = document_spans("One. <image>Two. <image>Three.", next_image=True)
    assert joined(spans) == ("<image>One. <|endofchunk|><image>Two. Three.<|endofchunk|>")
    start = "<image>One.<image>Two."  # the first image leads already
    assert document_spans(start, next_image=True) == document_spans(start)


def test_plain_text_ends_as_the_language_model_does(model: im.VisionLanguageModel) -> None:
    sample = tokenize(model, Record(text="no image"))
    assert model.special_tokens.end_id not in sample.ids
    assert sample.ids[-1] == model.language.end_ids()[0]
    assert sample.learned[-1]
    question = tokenize(model, Record.of(None, "1 + 1?", "2"))
    assert question.ids[-1] == model.language.end_ids()[0]


def test_a_long_sample_is_cut_and_never_inside_of_a_image(model: im.VisionLanguageModel) -> None:
    record = Record(text="ab<image>cd<image>ef", images_in_text=(A, B))
    whole = tokenize(model, record)
    repeat = model.layout.places
    for limit in range(4, len(whole.ids)):
        sample = tokenize(model, record, max_length=limit)
        tags = sample.ids.count(model.special_tokens.image_id)
        assert tags == repeat * len(sample.layouts)
        assert sample.ids == whole.ids[: len(sample.ids)]
        assert limit - repeat < len(sample.ids) <= limit


def test_nothing_left_to_learn_is_an_error(model: im.VisionLanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"nothing can be learned of it within 5 tokens"):
        tokenize(model, Record.of(A, "A long question?", "yes"), max_length=5)


def test_tags_in_an_answer_are_refused(model: im.VisionLanguageModel) -> None:
    record = Record((Example(A, "What?", "a <image>"), Example((), "Sure?", "yes")))
    with pytest.raises(PromptError, match="<image>"):
        tokenize(model, record)


def test_a_turn_that_cannot_be_learned_is_named_with_its_record() -> None:
    record = Record((Example((), "a", "b"), Example((), "c")), origin="chats.jsonl, line 3")
    with pytest.raises(PromptError, match=r'chats.jsonl, line 3: .*"c" has no answer'):
        conversation_spans(record, TEMPLATES["plain"])


def test_without_images_an_inner_end_is_learned_as_the_language_model_s_own(
    model: im.VisionLanguageModel,
) -> None:
    sample = tokenize(model, Record((Example((), "a", "b"), Example((), "c", "d"))))
    end, own = model.special_tokens.end_id, model.language.end_ids()[0]
    # what prompts say between the turns, with the model's own end of text learned in its place
    assert sample.ids.count(end) == 1
    assert sample.ids[-1] == own
    labels = collate(model, [sample]).batch.labels
    assert labels is not None
    assert labels[0, sample.ids.index(end)] == own
    assert end not in labels


def test_packed_images_follow_their_samples(model: im.VisionLanguageModel) -> None:
    records = [
        Record.of(A, "Q?", "x"),
        Record.of(None, "Q?", "y" * 30),
        Record((Example((A, B), "Q?", "z" * 20),)),
    ]
    samples = [tokenize(model, r) for r in records]
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 32, 32)
    longest = max(len(s.ids) for s in samples)
    packed = collate(model, samples, list(images), pack=longest)
    assert packed.batch.pixels is not None
    image = model.special_tokens.image_id
    order = sorted(range(3), key=lambda n: -len(samples[n].ids))
    expected = [p for n in order for p in {0: [0.0], 1: [], 2: [1.0, 2.0]}[n]]
    assert packed.batch.pixels[:, 0, 0, 0].tolist() == expected
    assert int((packed.batch.input_ids == image).sum()) == 3 * model.layout.places


def test_weights_go_to_the_tokens_of_their_samples(model: im.VisionLanguageModel) -> None:
    samples = [tokenize(model, Record.of(None, "Q?", a)) for a in ("x", "yy")]
    collated = collate(model, samples)
    batch = collated.weighted([1.0, 10.0])
    assert batch.labels is not None
    assert batch.weights is not None
    for row, weight in zip(range(2), (1.0, 10.0), strict=True):
        labelled = batch.labels[row] != -100
        assert (batch.weights[row][labelled] == weight).all()
        assert (batch.weights[row][~labelled] == 0).all()
    loss = model(batch)
    alone = [model(replace(batch, weights=None)).token_losses[collated.owner == i] for i in (0, 1)]
    expected = alone[0].sum() + 10 * alone[1].sum()
    torch.testing.assert_close(loss.loss, expected)
