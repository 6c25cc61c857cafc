"""Zero-shot classification: weights, scores, answers, the cache, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isthmus.classification import classifier_cache
from isthmus.classification.classifier_cache import cached_weights, zero_shot_weights
from isthmus.classification.templates import prompts_of, template_sets
from isthmus.classification.zero_shot import NONE, ZeroShotClassifier
from isthmus.errors import ConfigError, ImageError, InputError, PromptError
from isthmus.model.clip.dual_encoder import DualEncoder

LABELS = ["cat", "great white shark", "ice cream", "truck"]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 30 + i, 3), np.uint8)) for i in range(7)]


def classifier(model: Any, **options: Any) -> ZeroShotClassifier:
    told = {"labels": LABELS, "templates": "imagenet-7", "cache": False, **options}
    return ZeroShotClassifier(model, **told)


def by_hand(model: DualEncoder, prompts: list[list[str]]) -> torch.Tensor:
    """One class a call, one prompt a call, the mean written out."""
    rows = []
    for many in prompts:
        vectors = [model.encode_texts([prompt])[0] for prompt in many]
        mean = sum(v / v.norm() for v in vectors) / len(vectors)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("templates", ["none", "one", "imagenet-7", "imagenet-80", "digits"])
@torch.no_grad()
def test_weights_are_normalised_averaged_and_normalised(model: DualEncoder, templates: str) -> None:
    prompts = prompts_of(LABELS[:2], templates)
    expected = by_hand(model, prompts)
    torch.testing.assert_close(zero_shot_weights(model, prompts), expected, atol=1e-5, rtol=0)


def test_scores_and_probabilities_by_hand(model: DualEncoder, photos: list[Image.Image]) -> None:
    made = classifier(model)
    with torch.no_grad():
        images = torch.cat([model.encode_images([p]) for p in photos])
        logits = (model.logit_scale.exp() * images @ by_hand(model, made._prompts).T).numpy()
    np.testing.assert_allclose(made.decision_function(photos), logits, atol=1e-5)
    odds = np.exp(logits)
    np.testing.assert_allclose(
        made.predict_proba(photos), odds / odds.sum(1, keepdims=True), atol=1e-5
    )
    assert made.predict(photos).tolist() == [LABELS[i] for i in logits.argmax(1)]
    assert made.score(photos, made.predict(photos)) == 1
    best = made.top(photos, 2)[0]
    assert best[0][0] == made.predict(photos)[0]
    assert best[0][1] > best[1][1]


def test_the_model_s_own_temperature_is_used(build: Any, photos: list[Image.Image]) -> None:
    """Others write 100, which leaves the order and spoils the probabilities."""
    model = build("softmax")
    before = classifier(model).predict_proba(photos)
    with torch.no_grad():
        model.logit_scale.add_(math.log(2))
    after = classifier(model).predict_proba(photos)
    squared = before**2 / (before**2).sum(1, keepdims=True)
    np.testing.assert_allclose(after, squared, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_batch_size_changes_no_score(build: Any, loss: str, photos: list[Image.Image]) -> None:
    model = build(loss)
    whole = classifier(model, batch_size=64).predict_proba(photos)
    for size in (1, 3):
        got = classifier(model, batch_size=size).predict_proba(photos)
        np.testing.assert_allclose(got, whole, atol=1e-5)
    features = model.encode_images(photos)
    np.testing.assert_allclose(classifier(model).predict_proba(features), whole, atol=1e-5)


def test_a_sigmoid_model_judges_each_label(build: Any, photos: list[Image.Image]) -> None:
    model = build("sigmoid")
    made = classifier(model, multi_label=True)
    logits = made.decision_function(photos)
    cosines = (logits + 10) / 10  # t = 10 and b = -10, as it starts
    assert np.abs(cosines).max() <= 1 + 1e-6
    np.testing.assert_allclose(made.predict_proba(photos), 1 / (1 + np.exp(-logits)), rtol=1e-4)
    truth = made.predict(photos)
    assert truth.shape == (7, 4)
    assert made.score(photos, truth) == 1
    lower = float(np.median(made.predict_proba(photos)))
    some = classifier(model, multi_label=True, threshold=lower).predict(photos)
    assert some.sum() == 14
    # One label more changes nothing for the others
    fewer = classifier(model, labels=LABELS[:2]).predict_proba(photos)
    np.testing.assert_allclose(fewer, made.predict_proba(photos)[:, :2], atol=1e-7)


def test_a_softmax_model_weighs_a_label_against_something(
    model: DualEncoder, photos: list[Image.Image]
) -> None:
    got = classifier(model, multi_label=True).predict_proba(photos)
    for i, label in enumerate(LABELS):
        pair = classifier(model, labels=[label, "something"]).predict_proba(photos)
        np.testing.assert_allclose(got[:, i], pair[:, 0], atol=1e-5)


def test_below_the_threshold_it_is_none_of_these(
    model: DualEncoder, photos: list[Image.Image]
) -> None:
    best = classifier(model).predict_proba(photos).max(1)
    found = classifier(model, threshold=float(np.median(best))).predict(photos)
    assert [f == NONE for f in found] == [b < np.median(best) for b in best]
    made = classifier(model, threshold=1.0)
    assert made.score(photos, [NONE] * 7) == 1


# --- Cache ------------------------------------------------------------------------------------


def test_cached_weights_are_fresh_ones_and_no_others(
    build: Any, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(LABELS, "imagenet-7")
    fresh = zero_shot_weights(model, prompts)
    assert torch.equal(cached_weights(model, prompts, tmp_path), fresh)
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(classifier_cache, "zero_shot_weights", None)  # a file is enough
        assert torch.equal(cached_weights(model, prompts, tmp_path), fresh)

    path.write_bytes(path.read_bytes()[:-8])  # damaged: made again
    assert torch.equal(cached_weights(model, prompts, tmp_path), fresh)

    other = [*prompts[1:], prompts[0]]
    assert not torch.equal(cached_weights(model, other, tmp_path), fresh)
    assert len(list(tmp_path.iterdir())) == 2
    changed = build("softmax")
    with torch.no_grad():
        changed.text.head.linear.weight[0, 0] += 0.5
    got = cached_weights(changed, prompts, tmp_path)
    assert torch.equal(got, zero_shot_weights(changed, prompts))
    assert not torch.equal(got, fresh)


def test_a_classifier_caches_where_it_is_told(
    model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))
    for cache, place in (
        (True, tmp_path / "home/classifiers"),
        (tmp_path / "own", tmp_path / "own"),
    ):
        made = classifier(model, cache=cache)
        assert not place.exists()  # nothing is computed before it is asked for
        _ = made.weights_
        assert len(list(place.iterdir())) == 1
    (tmp_path / "file").write_text("")
    assert classifier(model, cache=tmp_path / "file" / "below").weights_.shape == (4, 12)


# --- Templates --------------------------------------------------------------------------------


def test_published_sets_are_whole() -> None:
    sets = {name: told["templates"] for name, told in template_sets().items()}
    assert len(sets["imagenet-80"]) == len(set(sets["imagenet-80"])) == 80
    assert set(sets["imagenet-7"]) <= set(sets["imagenet-80"])
    assert all(t.count("{}") == 1 for many in sets.values() for t in many)
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    for name, published in (
        ("imagenet-80", metadata.OPENAI_IMAGENET_TEMPLATES),
        ("imagenet-7", metadata.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert [t.replace("{}", "cat") for t in sets[name]] == [t("cat") for t in published]


def test_templates_of_one_s_own(tmp_path: Path) -> None:
    assert prompts_of(["cat"], "a {odd} {} and {}") == [["a {odd} cat and cat"]]
    assert prompts_of(["cat"], ["{}", "a {}"]) == [["cat", "a cat"]]
    (tmp_path / "own.txt").write_text("a {}.\n\nthe {}.\n")
    assert prompts_of(["cat"], tmp_path / "own.txt") == [["a cat.", "the cat."]]
    told = {"cat": ["It purrs.", "A {} has whiskers."], "dog": "It barks.", "cow": ["Moo."]}
    (tmp_path / "cupl.json").write_text(json.dumps(told))
    expected = [["It barks."], ["It purrs.", "A cat has whiskers."]]
    assert prompts_of(["dog", "cat"], str(tmp_path / "cupl.json")) == expected
    assert prompts_of(["dog", "cat"], told) == expected


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        (["a photo of a {}.", "a photo"], PromptError, r"'a photo' has no \{\}"),
        ("a photo of a cat", PromptError, r"has no \{\}"),
        ([], PromptError, "no templates"),
        ("imagenet80", InputError, 'did you mean "imagenet-80"'),
        ("nowhere.json", InputError, "cannot read nowhere.json"),
        ({"cat": ["It purrs."]}, PromptError, 'no description of "dog"'),
        ({"cat": ["It purrs."], "dog": [" "]}, PromptError, 'description of "dog"'),
    ],
)
def test_bad_templates(templates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prompts_of(["cat", "dog"], templates)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        (["cat", "dog", " cat"], '"cat" more than once'),
        (["cat", " "], "label 2 of 2 is empty"),
        ("cat,dog", "expected a list of labels"),
        (["cat", 3], "got int 3 among the labels"),
    ],
)
def test_bad_labels(model: DualEncoder, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier(model, labels=labels)


def test_bad_input_is_said_in_words(model: DualEncoder, photos: list[Image.Image]) -> None:
    made = classifier(model)
    long = "x" * 200
    with pytest.raises(PromptError, match=r"has 2\d\d tokens, .* at most 128"):
        classifier(model, labels=["cat", long]).predict(photos)
    with pytest.raises(InputError, match="expected a list of images"):
        made.predict("cat.jpg")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no images"):
        made.predict([])
    with pytest.raises(ImageError, match=r"no file at nowhere\.jpg"):
        made.predict(["nowhere.jpg"])
    with pytest.raises(InputError, match=r"expected features \(B, 12\)"):
        made.predict(torch.zeros(2, 13))
    with pytest.raises(InputError, match='unknown label "dog"'):
        made.score(photos[:1], ["dog"])
    with pytest.raises(InputError, match="got 2 labels for 1 images"):
        made.score(photos[:1], ["cat", "cat"])
    with pytest.raises(InputError, match="threshold is 2"):
        classifier(model, threshold=2)
    with pytest.raises(ConfigError, match="unknown dual encoder"):
        classifier("tinny")


def test_parameters_make_the_same_classifier_again(
    model: DualEncoder, photos: list[Image.Image]
) -> None:
    made = classifier(model, threshold=0.3, templates="one")
    again = ZeroShotClassifier(**made.get_params())
    assert again.predict(photos).tolist() == made.predict(photos).tolist()
    assert again.get_params() == made.get_params()
