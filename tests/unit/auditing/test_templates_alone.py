"""Templates one by one and in ensembles, against the classifier that is deployed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isthmus.auditing.measures.templates_alone import (
    accuracy_by_size,
    ensemble_weights,
    template_weights,
    templates_alone,
)
from isthmus.classification.classifier_cache import zero_shot_weights
from isthmus.classification.scaling import measure
from isthmus.classification.templates import prompts_of, template_sets
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson
from isthmus.model.clip.dual_encoder import DualEncoder

LABELS = ["cat", "great white shark", "ice cream", "truck"]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(3)
    made = DualEncoder.join("tiny-vit", "tiny-text", width=8)
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def toy(templates: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class weights that are prototypes with noise of each template's own; images; targets."""
    random = torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(5, 16, generator=random), dim=-1)
    weights = prototypes + noise * torch.randn(templates, 5, 16, generator=random)
    targets = torch.arange(5).repeat(80)
    images = prototypes[targets] + 0.25 * torch.randn(400, 16, generator=random)
    return F.normalize(weights, dim=-1), F.normalize(images, dim=-1), targets


@pytest.mark.parametrize("templates", ["imagenet-7", "cifar", "one"])
@torch.no_grad()
def test_the_ensemble_of_all_is_the_classifier(model: DualEncoder, templates: str) -> None:
    texts = template_sets()[templates]["templates"]
    classifier = ZeroShotClassifier(model, LABELS, templates, cache=False)
    each = template_weights(model, LABELS, texts)
    assert each.shape == (len(texts), 4, 8)
    torch.testing.assert_close(ensemble_weights(each), classifier.weights_, atol=1e-6, rtol=0)
    for one, text in zip(each, texts, strict=True):
        alone = zero_shot_weights(model, prompts_of(LABELS, [text]))
        torch.testing.assert_close(one, alone, atol=1e-6, rtol=0)
    if len(texts) > 1:  # else the test could not tell one ensemble from another
        assert (each.std(dim=0) > 1e-3).any()
        assert (ensemble_weights(each[1:]) - classifier.weights_).abs().max() > 1e-4
    # So the largest ensemble is as accurate as what is deployed
    features = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    targets = torch.arange(50) % 4
    scale = float(model.logit_scale.exp())
    largest = accuracy_by_size(each, features, targets, scale)[-1]
    expected = measure(torch.from_numpy(classifier.decision_function(features)), targets)
    assert largest.accuracy == expected.accuracy
    assert largest.nll == pytest.approx(expected.nll, abs=1e-5)
    assert largest.ece == pytest.approx(expected.ece, abs=1e-4)


def test_weights_of_an_ensemble() -> None:
    each, _, _ = toy(3, 0.5)
    equal = ensemble_weights(each, torch.full((3,), 1 / 3))
    torch.testing.assert_close(equal, ensemble_weights(each))
    torch.testing.assert_close(ensemble_weights(each, torch.tensor([0.0, 1.0, 0.0])), each[1])
    mixed = ensemble_weights(each, torch.tensor([0.2, 0.3, 0.5]))
    expected = 0.2 * each[0] + 0.3 * each[1] + 0.5 * each[2]
    torch.testing.assert_close(mixed, F.normalize(expected, dim=-1))


def test_each_template_by_hand() -> None:
    logits = torch.zeros(3, 4, 2)
    logits[0, :, 0] = math.log(3)  # 3/4 on class 0: right thrice of four
    logits[1, :, 1] = math.log(3)  # 3/4 on class 1
    logits[2, torch.arange(4), torch.tensor([0, 0, 0, 1])] = 20  # all right, and sure of it
    found = templates_alone(logits, torch.tensor([0, 0, 0, 1]), ["a {}", "b {}", "c {}"])
    assert [one.accuracy for one in found.templates] == [0.75, 0.25, 1.0]
    assert found.templates[0].interval == wilson(3, 4)
    assert [one.ece for one in found.templates] == pytest.approx([0, 0.5, 0], abs=1e-7)
    brier = [2 * (3 * 1 / 16 + 9 / 16) / 4, 2 * (3 * 9 / 16 + 1 / 16) / 4, 0]
    assert [one.brier for one in found.templates] == pytest.approx(brier, abs=1e-7)
    nll = [(3 * math.log(4 / 3) + math.log(4)) / 4, (3 * math.log(4) + math.log(4 / 3)) / 4, 0]
    assert [one.nll for one in found.templates] == pytest.approx(nll, abs=1e-7)
    assert found.mean == pytest.approx(2 / 3)
    assert found.sd == pytest.approx(math.sqrt(((1 / 12) ** 2 + (5 / 12) ** 2 + (1 / 3) ** 2) / 2))
    assert (found.lowest, found.worst, found.highest, found.best) == (0.25, "b {}", 1.0, "c {}")
    assert templates_alone(logits[:1], torch.tensor([0, 0, 0, 1]), ["a {}"]).sd is None
    json.dumps(asdict(found), allow_nan=False)


def test_small_ensembles_are_all_measured() -> None:
    each, images, targets = toy(5, 0.6)
    found = accuracy_by_size(each, images, targets, 10.0, draws=10)
    assert [(one.size, one.draws, one.complete) for one in found] == [
        (1, 5, True),
        (2, 10, True),
        (4, 5, True),
        (5, 1, True),
    ]
    for one in found:
        shares = [
            float((images @ each[list(some)].mean(0).T).argmax(1).eq(targets).double().mean())
            if one.size == 1
            else float(
                (images @ F.normalize(each[list(some)].mean(0), dim=-1).T)
                .argmax(1)
                .eq(targets)
                .double()
                .mean()
            )
            for some in combinations(range(5), one.size)
        ]
        assert one.accuracy == pytest.approx(np.mean(shares))
        assert (one.lowest, one.highest) == (min(shares), max(shares))
        assert one.sd == (pytest.approx(np.std(shares, ddof=1)) if one.size < 5 else None)


def test_noise_of_templates_averages_out() -> None:
    """Independent noise of each template: the planted gain of an ensemble."""
    each, images, targets = toy(32, 0.6)
    found = accuracy_by_size(each, images, targets, 10.0, draws=12)
    assert [one.size for one in found] == [1, 2, 4, 8, 16, 32]
    shares = [one.accuracy for one in found]
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 0.15
    assert [one.complete for one in found] == [False] * 5 + [True]
    assert found[0].sd is not None
    assert found[4].sd is not None
    assert found[4].sd < found[0].sd
    assert found == accuracy_by_size(each, images, targets, 10.0, draws=12)
    assert found != accuracy_by_size(each, images, targets, 10.0, draws=12, seed=1)
    json.dumps([asdict(one) for one in found], allow_nan=False)


def test_templates_that_say_the_same_gain_nothing() -> None:
    each, images, targets = toy(1, 0.6)
    found = accuracy_by_size(each.expand(6, 5, 16), images, targets, 10.0)
    assert len({one.highest for one in found} | {one.lowest for one in found}) == 1
    assert [one.sd for one in found[:-1]] == pytest.approx([0.0] * 3)


def test_bad_input() -> None:
    each, images, targets = toy(2, 0.1)
    logits = torch.zeros(2, 3, 4)
    with pytest.raises(InputError, match="1 texts of 2 templates"):
        templates_alone(logits, torch.zeros(3).long(), ["a"])
    with pytest.raises(InputError, match=r"targets of shape \(2,\): expected \(3,\)"):
        templates_alone(logits, torch.zeros(2).long(), ["a", "b"])
    with pytest.raises(InputError, match="targets from 0 to 4: expected 0 to 3"):
        templates_alone(logits, torch.tensor([0, 1, 4]), ["a", "b"])
    with pytest.raises(InputError, match="not finite"):
        templates_alone(logits / 0, torch.zeros(3).long(), ["a", "b"])
    with pytest.raises(InputError, match=r"expected \(images, 16\)"):
        accuracy_by_size(each, images[:, :3], targets, 1.0)
    with pytest.raises(InputError, match="0 draws"):
        accuracy_by_size(each, images, targets, 1.0, draws=0)
