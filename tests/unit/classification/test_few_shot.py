"""A few labelled images: each method against its formula, its optimum, or another reading."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isthmus.classification.few_shot import (
    METHODS,
    TipAdapter,
    learned_context,
    linear_probe,
    nearest_class_mean,
)
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import ConfigError, InputError, PromptError
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.towers import context_in_place

LABELS = ["cat", "dog", "truck"]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(3)
    made = DualEncoder.join("tiny-vit", "tiny-text", width=12)
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def clusters(each: int, noise: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around three directions that no text points in."""
    centres = F.normalize(torch.randn(3, 12, generator=torch.Generator().manual_seed(5)), dim=-1)
    targets = torch.arange(3).repeat(each)
    return F.normalize(centres[targets] + noise * torch.randn(3 * each, 12) / 3, dim=-1), targets


def test_tip_adapter_is_its_formula() -> None:
    features, targets = clusters(4)
    weights, query = (
        F.normalize(torch.randn(3, 12), dim=-1),
        F.normalize(torch.randn(5, 12), dim=-1),
    )
    made = TipAdapter(weights, features, targets, 20.0, alpha=1.3, beta=2.5)
    for b in range(5):
        for k in range(3):
            cache = sum(
                float((-2.5 * (1 - query[b] @ features[s])).exp())
                for s in range(12)
                if targets[s] == k
            )
            expected = 100 * float(query[b] @ weights[k]) + 1.3 * cache
            assert float(made.published(query)[b, k]) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(made(query), made.published(query) / 5)


def test_tip_adapter_with_no_weight_is_zero_shot_and_search_finds_it_useful() -> None:
    features, targets = clusters(8)
    weights, (query, truth) = F.normalize(torch.randn(3, 12), dim=-1), clusters(50)
    plain = TipAdapter(weights, features, targets, 20.0, alpha=0.0)
    torch.testing.assert_close(plain(query), 20 * query @ weights.T)
    searched = TipAdapter(weights, features, targets, 20.0, alpha=None)
    assert searched.alpha > 0

    def right(scorer: Any) -> float:
        return float((scorer(query).argmax(1) == truth).float().mean())

    assert right(searched) > right(plain) + 0.2


def test_a_labelled_image_is_not_its_own_evidence() -> None:
    """With labels drawn by lot, leaving each out must find that the cache says nothing."""
    features = F.normalize(torch.randn(60, 64), dim=-1)
    targets = torch.arange(60) % 3
    weights = torch.zeros(3, 64)
    made = TipAdapter(weights, features, targets, 100.0, alpha=None)
    own = TipAdapter(weights, features, targets, 100.0, alpha=32.0, beta=32.0)
    assert F.cross_entropy(own(features), targets) < 0.1  # what it would have believed
    assert F.cross_entropy(made(features), targets) > 0.9  # near log 3, which is a guess


def test_tuned_keys_lower_the_loss_and_start_from_the_features() -> None:
    features, targets = clusters(8)
    weights = F.normalize(torch.randn(3, 12), dim=-1)
    still = TipAdapter(weights, features, targets, 100.0)
    unmoved = TipAdapter(weights, features, targets, 100.0).tune(epochs=1, learning_rate=0.0)
    tuned = TipAdapter(weights, features, targets, 100.0).tune(epochs=30, learning_rate=1e-2)
    assert torch.equal(unmoved.keys, features)
    losses = [float(F.cross_entropy(t.published(features), targets)) for t in (still, tuned)]
    assert losses[1] < losses[0] - 0.05
    assert not tuned.keys.requires_grad
    again = TipAdapter(weights, features, targets, 100.0).tune(epochs=30, learning_rate=1e-2)
    assert torch.equal(again.keys, tuned.keys)


def test_nearest_class_mean_by_hand() -> None:
    features, targets = clusters(5)
    query = torch.randn(4, 12)
    means = torch.stack([features[targets == k].mean(0) for k in range(3)])
    expected = 7 * query @ (means / means.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(nearest_class_mean(features, targets, 3, 7.0)(query), expected)


@pytest.mark.parametrize("toward", [False, True])
def test_the_linear_probe_is_at_the_optimum(toward: bool) -> None:
    """A convex function has one minimum, and there its gradient is zero."""
    features, targets = clusters(6, noise=2.0)
    start = torch.randn(3, 12) if toward else None
    score = linear_probe(features, targets, 3, penalty=1e-2, toward=start)
    bias = score(torch.zeros(1, 12))[0]
    weight = (score(torch.eye(12)) - bias).T
    off = (score(features).softmax(1) - F.one_hot(targets, 3)) / len(features)
    gradient = off.T @ features + 1e-2 * (weight - (0 if start is None else start))
    assert gradient.abs().max() < 1e-4
    assert off.sum(0).abs().max() < 1e-4
    assert weight.abs().max() > 0.5


def test_learned_context_starts_at_the_words(model: DualEncoder) -> None:
    """With a learning rate of 0 the words stand there, and the prompt is the plain one."""
    features, targets = clusters(2)
    got = learned_context(model, LABELS, features, targets, epochs=1, learning_rate=0.0)
    # The byte tower's tokens are letters: no space between the context and the label
    expected = model.encode_texts([f"a photo of a{label}." for label in LABELS])
    torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=0)


def test_learned_context_fits_and_leaves_the_model_as_it_was(model: DualEncoder) -> None:
    features, targets = clusters(4)
    before = model.fingerprint()
    wanted = [p.requires_grad for p in model.parameters()]

    def loss(weights: torch.Tensor) -> float:
        return float(F.cross_entropy(14 * features @ weights.T, targets))

    start = learned_context(model, LABELS, features, targets, context=4, epochs=1, learning_rate=0)
    end = learned_context(
        model, LABELS, features, targets, context=4, epochs=60, learning_rate=0.02
    )
    assert loss(end) < loss(start) - 0.1
    assert model.fingerprint() == before
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not model.text.token_embedding()._forward_hooks


def test_a_context_reaches_the_label_of_every_family() -> None:
    """open_clip's causal tower: what stands behind the context is as if typed there."""
    open_clip = pytest.importorskip("open_clip")
    from isthmus.model.clip.checkpoint import load_clip

    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 20, "width": 32, "heads": 2, "layers": 2}
    clip = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)
    model = load_clip(clip, tokenizer=open_clip.tokenizer.SimpleTokenizer())
    ids = torch.tensor([model.text.token_ids(["a photo of a"])[0][1:-1]])
    words = model.text.token_embedding()(ids)[0].detach()
    typed = model.encode_texts(["a photo of a cat"])
    with context_in_place(model.text, words):
        learned = model.encode_texts(["x x x x cat"])
    torch.testing.assert_close(learned, typed, atol=1e-6, rtol=0)
    assert (model.encode_texts(["x x x x cat"]) - typed).abs().max() > 1e-3
    features, targets = clusters(1)
    with pytest.raises(PromptError, match="at most 20"):
        learned_context(model, LABELS, features, targets, context=30)


@pytest.mark.parametrize("method", METHODS)
def test_fit_learns_what_the_words_do_not_say(model: DualEncoder, method: Any) -> None:
    features, targets = clusters(16)
    query, truth = clusters(40)
    labels = [LABELS[t] for t in targets]
    made = ZeroShotClassifier(model, LABELS, cache=False)
    before = made.score(query, [LABELS[t] for t in truth])
    options: dict[str, Any] = {
        "tip-adapter": {"alpha": None},
        "tip-adapter-f": {"alpha": 4.0, "beta": 4.0, "learning_rate": 1e-2},
        "coop": {"epochs": 30, "learning_rate": 0.02, "context": 8},
    }.get(method, {})
    assert made.fit(features, labels, method, **options) is made
    after = made.score(query, [LABELS[t] for t in truth])
    assert after > before + 0.1
    np.testing.assert_allclose(made.predict_proba(query).sum(1), 1, atol=1e-5)
    assert set(made.predict(query)) <= set(LABELS)


def test_bad_fits(model: DualEncoder) -> None:
    features, targets = clusters(2)
    labels = [LABELS[t] for t in targets]
    made = ZeroShotClassifier(model, LABELS, cache=False)
    with pytest.raises(ConfigError, match='did you mean "tip-adapter"'):
        made.fit(features, labels, "tipadapter")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 5 labels for 6 images"):
        made.fit(features, labels[:-1])
    with pytest.raises(InputError, match='unknown label "cow"'):
        made.fit(features, ["cow", *labels[1:]])
    for method in ("ncm", "linear"):
        with pytest.raises(InputError, match="1 of 3 classes have no labelled image"):
            made.fit(features[:2], labels[:2], method)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such option; got wide"):
        made.fit(features, labels, "linear", wide=1)
    with pytest.raises(ConfigError, match='"tip-adapter" is not trained'):
        made.fit(features, labels, "tip-adapter", epochs=3)
    with pytest.raises(ConfigError, match="leave out multi_label"):
        ZeroShotClassifier(model, LABELS, multi_label=True, cache=False).fit(features, labels)
    with pytest.raises(InputError, match="at least 1 vector"):
        made.fit(features, labels, "coop", context=0)
    with pytest.raises(InputError, match="has no tokens"):
        made.fit(features, labels, "coop", context="")
