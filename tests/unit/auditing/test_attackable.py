"""The subject of an attack: its logits are the classifier's own, and its gradient is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.attacks.attackable import (
    attackable_of,
    features_of,
    from_classifier,
    margins,
    pixels_of,
    scores,
)
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import ConfigError, InputError
from isthmus.model.clip.class_mixture import ClassMixtureConfig
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.towers import ImageTower

LABELS = ["cat", "great white shark", "ice cream", "truck"]


def built(vision: str = "tiny-vit", loss: Any = "softmax", **options: Any) -> DualEncoder:
    torch.manual_seed(3)
    made = DualEncoder.join(vision, "tiny-text", width=12, loss=loss, **options)
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def classifier(model: DualEncoder, **options: Any) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, LABELS, "imagenet-7", cache=False, **options)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 30 + i, 3), np.uint8)) for i in range(5)]


MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "sigmoid": {"loss": "sigmoid"},
    "convolutional": {"vision": "tiny-cnn"},
    "own pooling": {"pooling": "own"},
    "unlocked": {"lock_image": False},
    "stages": {"vision": "tiny-cnn", "pooling": "stages"},
}


def same(made: ZeroShotClassifier, photos: list[Image.Image]) -> None:
    """Logits, with and without a graph, are those of the images."""
    subject, pixels = from_classifier(made), pixels_of(made, photos)
    expected = made.decision_function(photos)
    assert np.ptp(expected, axis=0).max() > 5e-3  # else any constant would pass
    np.testing.assert_allclose(scores(subject, pixels).numpy(), expected, atol=1e-4)
    graph = subject.logits(pixels.requires_grad_())
    np.testing.assert_allclose(graph.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_decision_function(name: str, photos: list[Image.Image]) -> None:
    same(classifier(built(**MODELS[name])), photos)


def test_a_few_shot_head_and_a_calibration_are_attacked_with_it(photos: list[Image.Image]) -> None:
    made = classifier(built())
    before = scores(from_classifier(made), pixels_of(made, photos))
    features = torch.nn.functional.normalize(torch.randn(40, 12), dim=-1)
    names = [LABELS[i % 4] for i in range(40)]
    for method in ("linear", "tip-adapter"):
        made.fit(features, names, method)
        same(made, photos)
        after = scores(from_classifier(made), pixels_of(made, photos))
        assert float((after - before).abs().max()) > 1e-2
    centres = made.weights_.repeat(10, 1) + torch.randn(40, 12) / 3
    calibrated = classifier(made.model).calibrate(centres, LABELS * 10, method="vector")
    same(calibrated, photos)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_logits_and_parameters_get_none(name: str) -> None:
    model = built(**MODELS[name])
    made = classifier(model)
    subject = from_classifier(made)
    assert subject.has_gradient
    height, width = subject.size
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    model.double()  # so that differences of functions tell
    model.logit_scale.data = model.logit_scale.data.double()
    encode = features_of(made)
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    probe = torch.randn(12, generator=torch.Generator().manual_seed(2))
    pixels.requires_grad_()
    (encode(pixels) @ probe).sum().backward()
    assert pixels.grad is not None
    slope = float((pixels.grad * direction).sum())
    step = 1e-4
    with torch.no_grad():
        ahead = float((encode(pixels + step * direction) @ probe).sum())
        behind = float((encode(pixels - step * direction) @ probe).sum())
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=0.05)
    assert all(p.grad is None for p in model.parameters())
    assert any(p.requires_grad for p in model.parameters())


class NoGradients(ImageTower):
    """As a tower in another runtime: numbers go in and come out."""

    image_size = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(192, 12))

    def preprocess(self, image: Image.Image) -> Tensor:
        found = np.asarray(image.resize((8, 8)), dtype=np.float32) / 255
        return torch.from_numpy(found).permute(2, 0, 1) * 2 - 1

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(pixels.flatten(1).numpy() @ self.weight.detach().numpy())


def test_a_model_in_another_runtime_has_no_gradient(photos: list[Image.Image]) -> None:
    text = built().text
    made = classifier(DualEncoder(NoGradients(), text, logit_scale=2.0))
    subject = from_classifier(made)
    assert not subject.has_gradient
    found = scores(subject, pixels_of(made, photos)).numpy()
    np.testing.assert_allclose(found, made.decision_function(photos), atol=1e-4)


def test_logits_that_do_not_depend_on_pixels_have_no_gradient() -> None:
    own = torch.nn.Parameter(torch.ones(3))
    assert not attackable_of(lambda x: own.expand(len(x), 3), (8, 8)).has_gradient


@pytest.mark.parametrize("name", ["transformer", "convolutional"])
def test_pixels_are_what_the_encoder_sees_before_normalisation(
    name: str, photos: list[Image.Image]
) -> None:
    model = built(**MODELS[name])
    mean, std = model.image.encoder._normalisation
    found = pixels_of(classifier(model), photos)
    for pixels, photo in zip(found, photos, strict=True):
        told = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
        expected = model.preprocess(photo) * told[0] + told[1]
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    assert float(found.min()) < 0.1
    assert float(found.max()) > 0.9


def test_preprocessing_that_is_no_normalisation_is_refused(photos: list[Image.Image]) -> None:
    tower = NoGradients()
    tower.preprocess = lambda image: NoGradients.preprocess(tower, image) ** 3  # type: ignore[method-assign]
    made = classifier(DualEncoder(tower, built().text, logit_scale=2.0))
    with pytest.raises(ConfigError, match="not map plain black, grey and white"):
        pixels_of(made, photos)


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    assert margins(logits, torch.tensor([0, 2])).tolist() == [0.5, -3.0]


def test_what_cannot_be_attacked_is_told() -> None:
    model = built()
    with pytest.raises(ConfigError, match="multi_label"):
        from_classifier(classifier(model, multi_label=True))
    with pytest.raises(InputError, match="at least 2"):
        from_classifier(ZeroShotClassifier(model, ["cat"], "one", cache=False))
    with pytest.raises(InputError, match="no images"):
        pixels_of(classifier(model), [])
    subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
    with pytest.raises(InputError, match="3, 8, 8"):
        scores(subject, torch.zeros(1, 3, 8, 9))
    with pytest.raises(InputError, match="0 to 1"):
        scores(subject, torch.full((1, 3, 8, 8), 1.5))
    with pytest.raises(InputError, match="0 to 1"):
        scores(subject, torch.full((1, 3, 8, 8), torch.nan))


def test_a_mixture_of_classes_is_attacked_too(photos: list[Image.Image]) -> None:
    import timm

    torch.manual_seed(0)
    vision = timm.create_model("test_efficientnet", num_classes=5)
    mixture = ClassMixtureConfig(width=4, radius=1.0)
    model = DualEncoder.join(
        vision.eval(), "tiny-text", width=12, pooling="stages", mixture=mixture
    )
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    made = classifier(model)
    same(made, photos)
    assert from_classifier(made).has_gradient
