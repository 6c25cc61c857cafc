"""What the encoder's own classifier says beside a head: by hand, and where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import ConfigError
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.clip.checkpoint import load_clip, save_clip
from isthmus.model.clip.class_mixture import ClassMixture, ClassMixtureConfig
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig, pooled_features
from isthmus.training.locked import PooledViews

CLASSES = 7


def convnet(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=classes).eval()


def pixels_for(encoder: VisionEncoder, count: int = 3) -> Tensor:
    made = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *encoder.image_size, generator=made)


def join(radius: float = 1.0) -> DualEncoder:
    mixture = ClassMixtureConfig(width=4, temperature=1.5, radius=radius)
    torch.manual_seed(2)
    model = DualEncoder.join(
        convnet(), "tiny-text", width=12, pooling="stages", image_head=HeadConfig(), mixture=mixture
    )
    nn.init.normal_(model.image.mixture.vectors)
    return model


def test_a_mixture_by_hand() -> None:
    mixture = ClassMixture(3, ClassMixtureConfig(width=2, temperature=2.0, radius=5.0))
    with torch.no_grad():
        mixture.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    scores = torch.log(torch.tensor([[0.25, 0.25, 0.5]])) * 2  # at temperature 2 these shares
    got = mixture(torch.tensor([[3.0, 4.0]]), scores)  # on the radius: half and half
    expected = torch.tensor([[0.3, 0.4, 0.5 * 0.75, 0.5 * 0.75, 0.3, 0.4]])
    torch.testing.assert_close(got, expected)


def test_who_is_trusted_depends_on_the_length_alone() -> None:
    mixture = ClassMixture(3, ClassMixtureConfig(width=2, radius=5.0))
    nn.init.normal_(mixture.vectors)
    scores = torch.randn(1, 3)
    near, far = (mixture(torch.tensor([[x, 0.0]]), scores)[0] for x in (1.0, 25.0))
    torch.testing.assert_close(near[:2], torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
    assert near[2:].abs().max() < 1e-4
    assert far[:2].abs().max() < 1e-4
    said = scores.softmax(-1)[0] @ mixture.vectors
    torch.testing.assert_close(
        far[2:], torch.cat([said, torch.tensor([1.0, 0.0])]), rtol=1e-4, atol=0
    )
    nothing = mixture(torch.zeros(1, 2), scores)
    assert nothing.isfinite().all()


def test_stages_are_timms_own_and_the_scores_its_classifiers() -> None:
    model = convnet()
    encoder = load_vision(model)
    for count in (1, 3):  # the graph was traced at another batch size
        pixels = pixels_for(encoder, count)
        stages = model.forward_intermediates(pixels, intermediates_only=True)
        parts = [p for stage in stages for p in (stage.mean((2, 3)), stage.amax((2, 3)))]
        expected = torch.cat(parts, dim=1)
        torch.testing.assert_close(encoder.stages(pixels), expected, rtol=1e-4, atol=1e-4)
        both = pooled_features(encoder, pixels, "stages", classes=True)
        torch.testing.assert_close(both[:, :-CLASSES], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both[:, -CLASSES:], model(pixels), rtol=1e-4, atol=1e-4)


def test_stages_follow_weights_that_are_loaded() -> None:
    encoder = load_vision(convnet())
    pixels = pixels_for(encoder)
    before = encoder.stages(pixels)
    torch.manual_seed(5)
    other = timm.create_model("test_efficientnet", num_classes=CLASSES)
    encoder.load_state_dict({f"model.{k}": v for k, v in other.state_dict().items()})
    assert not torch.allclose(encoder.stages(pixels), before, atol=1e-2)


def test_a_tower_is_its_head_and_its_mixture() -> None:
    model = join(radius=0.5)
    tower = model.image
    pixels = pixels_for(tower.encoder)
    pooled = pooled_features(tower.encoder, pixels, "stages")
    scores = tower.encoder.model(pixels)
    expected = F.normalize(tower.mixture(tower.head(pooled), scores), dim=-1)
    torch.testing.assert_close(model.encode_pixels(pixels), expected, atol=1e-5, rtol=0)
    text = model.encode_texts(["a cat"])
    assert text.shape == expected[:1].shape == (1, 12 + 8)
    half = torch.tensor(0.5).sqrt()  # both parts count the same, whatever the head makes of a text
    torch.testing.assert_close(text[0, :8].norm(), half)
    torch.testing.assert_close(text[0, 8:12].norm(), half)
    assert not text[:, 12:].any()  # of these numbers no text speaks
    assert tower.pool(pixels).shape == (3, tower.pooled_width)
    cache = PooledViews(tower, 1, lambda image, _: image, 0)
    kept = tower.map(torch.from_numpy(cache.encode(pixels[:, None], ["a", "b", "c"])[:, 0]))
    torch.testing.assert_close(F.normalize(kept, dim=-1), expected, atol=1e-5, rtol=0)


def test_a_mixture_is_saved_and_loaded(tmp_path: Path) -> None:
    model = join(radius=0.5)
    vision = convnet()
    again = load_clip(save_clip(model, tmp_path), vision=vision)
    assert again.image.mixture.config == ClassMixtureConfig(width=4, temperature=1.5, radius=0.5)
    pixels = pixels_for(model.image.encoder)
    assert torch.equal(again.encode_pixels(pixels), model.encode_pixels(pixels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = join(radius=0.5)
    pixels = pixels_for(model.image.encoder)
    full = model.encode_pixels(pixels)
    half = model.to(dtype).encode_pixels(pixels)
    assert F.cosine_similarity(half.float(), full, dim=-1).min() > 0.99


def test_what_changes_vectors_changes_the_fingerprint() -> None:
    model, other = join(radius=0.5), join(radius=0.7)
    other.load_state_dict(model.state_dict())
    assert other.image_fingerprint() != model.image_fingerprint()
    assert other.fingerprint() != model.fingerprint()
    told = model.text_fingerprint()
    model.text.parts = None
    assert model.text_fingerprint() != told


def test_gradients_reach_the_classes_and_an_encoder_that_is_not_locked() -> None:
    mixture = ClassMixtureConfig(width=4, radius=1.0)
    model = DualEncoder.join(
        convnet(), "tiny-text", width=12, pooling="stages", mixture=mixture, lock_image=False
    )
    nn.init.normal_(model.image.mixture.vectors)
    model.encode_pixels(pixels_for(model.image.encoder)).square()[:, 0].sum().backward()
    assert model.image.mixture.vectors.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.image.encoder.model.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vision": convnet(0), "pooling": "stages"}, "loaded without"),
        ({"vision": "tiny-vit", "pooling": "stages"}, "has no stages"),
        ({"vision": convnet(), "pooling": "mean"}, 'expected pooling "stages"'),
        ({"vision": convnet(), "pooling": "stages", "width": 4}, "expected less"),
    ],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, object], match: str) -> None:
    vision = options.pop("vision")
    with pytest.raises(ConfigError, match=match):
        DualEncoder.join(
            vision,
            "tiny-text",
            **{"width": 12, "mixture": ClassMixtureConfig(width=4), **options},  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("option", ["width", "temperature", "radius"])
def test_numbers_are_more_than_nothing(option: str) -> None:
    with pytest.raises(ConfigError, match=f"got {option} 0"):
        ClassMixtureConfig(**{"width": 4, option: 0})
