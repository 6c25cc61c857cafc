"""Zero-shot prompt weighting finds planted templates, and is what its equations say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.auditing.measures.templates_alone import ensemble_weights
from isthmus.auditing.measures.weighting import zero_shot_prompt_weights
from isthmus.errors import InputError

CLASSES, WIDTH, SCALE = 6, 32, 20.0


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Two templates that name the classes, 30 of random words; images; targets."""
    prototypes = unit(CLASSES, WIDTH, seed=0)
    informative = F.normalize(prototypes + 0.5 * unit(2, CLASSES, WIDTH, seed=1), dim=-1)
    random_words = unit(30, CLASSES, WIDTH, seed=2)
    targets = torch.arange(CLASSES).repeat(50)
    images = F.normalize(prototypes[targets] + 2.0 * unit(300, WIDTH, seed=3), dim=-1)
    return torch.cat([informative, random_words]), images, targets


def by_the_equations(each: Tensor, images: Tensor, reference: Tensor | None) -> list[float]:
    """Written out image by image and class by class."""
    scores = []
    for template in each.double().numpy():
        logits = np.array(
            [[SCALE * float(x @ w) for w in template] for x in images.double().numpy()]
        )
        expected = logits.mean(axis=0)
        if reference is not None:
            others = [[SCALE * float(x @ w) for w in template] for x in reference.double().numpy()]
            expected = 0.5 * (np.mean(others, axis=0) + expected)
        scores.append(float(np.mean([max(row - expected) for row in logits])))
    return scores


@pytest.mark.parametrize("with_reference", [False, True])
def test_scores_and_weights_are_those_of_the_equations(with_reference: bool) -> None:
    each, images, _ = planted()
    reference = unit(40, WIDTH, seed=9) + 0.3 if with_reference else None
    found = zero_shot_prompt_weights(each, images[:30], SCALE, reference=reference)
    expected = by_the_equations(each, images[:30], reference)
    np.testing.assert_allclose(found.scores.numpy(), expected, rtol=1e-10)
    odds = np.exp(expected)
    np.testing.assert_allclose(found.weights.numpy(), odds / odds.sum(), rtol=1e-10)
    torch.testing.assert_close(found.class_weights, ensemble_weights(each, found.weights))


@pytest.mark.parametrize("with_reference", [False, True])
def test_informative_templates_weigh_more_than_random_words(with_reference: bool) -> None:
    each, images, targets = planted()
    reference = unit(500, WIDTH, seed=8) if with_reference else None
    found = zero_shot_prompt_weights(each, images, SCALE, reference=reference)
    assert found.weights[:2].min() > 10 * found.weights[2:].max()
    assert float(found.weights.sum()) == pytest.approx(1)

    def accuracy(weights: Tensor) -> float:
        return float((images @ weights.T).argmax(1).eq(targets).double().mean())

    assert accuracy(found.class_weights) > accuracy(ensemble_weights(each)) + 0.02
    torch.testing.assert_close(
        found.class_weights.norm(dim=-1), torch.ones(CLASSES), atol=1e-6, rtol=0
    )


def test_a_template_near_all_images_is_not_fooled_by() -> None:
    """The paper's two biases: words near every image of pretraining, or near all of these."""
    each, images, _ = planted()
    common = unit(1, WIDTH, seed=5)
    images = F.normalize(images + 3 * common, dim=-1)  # all photographs, say
    popular = F.normalize(common + 0.05 * unit(CLASSES, WIDTH, seed=6), dim=-1)
    both = torch.stack([each[0], popular])
    naive = [float((SCALE * images @ one.T).amax(1).mean()) for one in both]
    assert naive[1] > naive[0]  # the largest logit alone would choose it
    found = zero_shot_prompt_weights(both, images, SCALE)
    assert found.weights[0] > 0.9
    reference = F.normalize(unit(400, WIDTH, seed=7) + 3 * common, dim=-1)
    found = zero_shot_prompt_weights(both, images, SCALE, reference=reference)
    assert found.weights[0] > 0.9


def test_equal_templates_weigh_the_same_and_scale_sharpens() -> None:
    each, images, _ = planted()
    same = zero_shot_prompt_weights(each[:1].expand(5, -1, -1), images, SCALE)
    np.testing.assert_allclose(same.weights.numpy(), 0.2, rtol=1e-12)
    torch.testing.assert_close(same.class_weights, each[0])
    soft, sharp = (zero_shot_prompt_weights(each, images, scale).weights for scale in (1.0, 100.0))
    assert soft.argmax() == sharp.argmax()
    assert sharp.max() > soft.max()
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(0))
    moved = zero_shot_prompt_weights(each[order], images, SCALE)
    torch.testing.assert_close(
        moved.weights, zero_shot_prompt_weights(each, images, SCALE).weights[order]
    )


def test_bad_input() -> None:
    each, images, _ = planted()
    with pytest.raises(InputError, match=r"expected \(templates, classes, width\)"):
        zero_shot_prompt_weights(each[0], images, SCALE)
    with pytest.raises(InputError, match=r"expected \(images, 32\)"):
        zero_shot_prompt_weights(each, images[:0], SCALE)
    with pytest.raises(InputError, match=r"features of shape \(5, 3\)"):
        zero_shot_prompt_weights(each, images, SCALE, reference=torch.zeros(5, 3))
    with pytest.raises(InputError, match="scale -1"):
        zero_shot_prompt_weights(each, images, -1.0)
