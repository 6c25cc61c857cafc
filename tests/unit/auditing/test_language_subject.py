"""A language model's labels are scored as a plain forward pass scores them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import isthmus as im
from isthmus.auditing.language_subject import QUESTION, LanguageSubject
from isthmus.auditing.subject import Subject
from isthmus.errors import ConfigError, ImageError, InputError
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel

LABELS = ("cat", "car", "dog", "a dog that runs")
WORDINGS = ("What is this?", "Which animal do you see?")
Photos = list[Image.Image]


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    with torch.no_grad():  # weights far from zero, so that images and words count
        for parameter in made.connector.parameters():
            parameter.normal_(std=0.5)
        for parameter in made.language.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return made.eval()


@torch.inference_mode()
def by_hand(model: VisionLanguageModel, image: Image.Image, question: str, label: str) -> float:
    """The sum of a label's token log-probabilities in one pass of the whole text."""
    batch = model.prepare([f"<image>Question: {question} Answer:"], [[image]])
    answer = model.special_tokens.encode(f" {label}")
    ids = torch.cat([batch.input_ids, torch.tensor([answer])], dim=1)
    both = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=batch.pixels)
    logits = model(both).logits[0, batch.input_ids.shape[1] - 1 : -1]
    return -float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum"))


def test_log_probabilities_are_those_of_a_plain_forward_pass(
    model: VisionLanguageModel, photos: Photos
) -> None:
    found: Subject = LanguageSubject(model, LABELS)
    logits = found.logits(photos)
    expected = [[by_hand(model, p, QUESTION, label) for label in LABELS] for p in photos]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert logits.std(dim=0).min() > 0.01  # images count
    assert logits.dtype == torch.float32
    assert (found.features(photos), found.encoder, found.predict_none) == (None, None, None)
    assert found.chance == 0.25


def test_norms_divide_by_lengths(model: VisionLanguageModel, photos: Photos) -> None:
    sums = LanguageSubject(model, LABELS).logits(photos)
    tokens = torch.tensor([len(model.special_tokens.encode(f" {label}")) for label in LABELS])
    each = LanguageSubject(model, LABELS, norm="token").logits(photos)
    torch.testing.assert_close(each, sums / tokens, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match='norm is "length"'):
        LanguageSubject(model, LABELS, norm="length")  # type: ignore[arg-type]


def test_wordings_are_mixed_as_probabilities(model: VisionLanguageModel, photos: Photos) -> None:
    both = LanguageSubject(model, LABELS, WORDINGS).logits(photos)
    apart = [LanguageSubject(model, LABELS, (text,)).logits(photos).double() for text in WORDINGS]
    mean = sum(scores.exp() for scores in apart) / 2
    torch.testing.assert_close(both.double(), mean.log(), rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
    assert float((apart[0] - apart[1]).abs().max()) > 0.1  # they differ


def test_with_prompts_class_k_stays_class_k(model: VisionLanguageModel, photos: Photos) -> None:
    found = LanguageSubject(model, LABELS, name="tiny")
    words = ("kitten", "car", "dog", "a dog that runs", "a tree")
    other = found.with_prompts(labels=words)
    assert (other.labels, other.name, other.chance) == (words, "tiny", 0.2)
    old, new = found.logits(photos), other.logits(photos)
    torch.testing.assert_close(new[:, 1:4], old[:, 1:], rtol=1e-4, atol=1e-4)
    assert new[0, 0] == pytest.approx(by_hand(model, photos[0], QUESTION, "kitten"), rel=1e-4)
    asked = found.with_prompts(templates=[WORDINGS[0]])
    assert asked.templates == WORDINGS[:1]
    expected = by_hand(model, photos[0], WORDINGS[0], "dog")
    assert asked.logits(photos)[0, 2] == pytest.approx(expected, rel=1e-4)
    assert found.with_prompts() is found
    with pytest.raises(InputError, match="got 1 labels in place of 4"):
        found.with_prompts(labels=["cat"])
    with pytest.raises(ConfigError, match=r"has a \{\}"):
        found.with_prompts(templates=["a photo of a {}."])
    with pytest.raises(ConfigError, match="got dict as questions"):
        found.with_prompts(templates={"cat": ["a cat"]})


def test_all_kinds_of_images_and_each_once(
    model: VisionLanguageModel, photos: Photos, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    photos[0].save(path)
    found = LanguageSubject(model, LABELS)
    kinds = [photos[0], path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())]
    rows = found.logits(kinds)  # type: ignore[arg-type]
    torch.testing.assert_close(rows, rows[:1].expand(5, -1), rtol=1e-4, atol=1e-4)
    before = found._engine.statistics.prefill_tokens + found._engine.statistics.cached_tokens
    torch.testing.assert_close(found.logits(kinds), rows)  # type: ignore[arg-type]
    after = found._engine.statistics.prefill_tokens + found._engine.statistics.cached_tokens
    assert after == before
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: the file is shown upright, and so is the PIL image
    photos[0].save(path, exif=exif)
    upright = LanguageSubject(model, LABELS).logits([path])
    with Image.open(path) as opened:
        shown = LanguageSubject(model, LABELS).logits([opened])
    torch.testing.assert_close(shown, upright, rtol=1e-4, atol=1e-4)
    assert float((upright - rows[:1]).abs().max()) > 0.01
    with pytest.raises(ImageError):
        found.logits([tmp_path / "none.png"])


def test_many_images_are_those_one_by_one(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, photos: Photos
) -> None:
    whole = LanguageSubject(model, LABELS).logits(photos)
    monkeypatch.setattr("isthmus.auditing.language_subject.ASKED_AT_ONCE", 4)
    parts = LanguageSubject(model, LABELS).logits(photos)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_the_identity_and_bad_input(model: VisionLanguageModel) -> None:
    told = LanguageSubject(model, LABELS).identity()
    assert told == LanguageSubject(model, LABELS, name="another name").identity()
    other = LanguageSubject(model, LABELS[:2], WORDINGS).identity()
    assert {key for key in told if told[key] != other[key]} == {"labels", "templates"}
    with torch.no_grad():
        weight = next(model.connector.parameters())
        weight.view(-1)[0] += 1
        assert LanguageSubject(model, LABELS).identity()["weights"] != told["weights"]
        weight.view(-1)[0] -= 1
    with pytest.raises(InputError, match="more than once"):
        LanguageSubject(model, ("cat", "cat"))
    with pytest.raises(InputError, match="expected one or more"):
        LanguageSubject(model, LABELS, ())
