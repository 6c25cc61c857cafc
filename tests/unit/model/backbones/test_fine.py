"""An early feature map behind the regions: the network's own numbers, of the same pass."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.config.speedups import speedup
from isthmus.data.features import FeatureCache
from isthmus.errors import ConfigError
from isthmus.model.backbones.feature_shape import RegionShape
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.features import PatchFeatures, cache_key


def encoder_of(fine: int = 0, regions: bool = True) -> VisionEncoder:
    config = im.VisionConfig(name="tiny-cnn", resize="squash", regions=regions, fine=fine)
    return load_vision(config)


@pytest.mark.parametrize(("fine", "stage", "channels", "side"), [(4, 1, 8, 16), (8, 2, 8, 8)])
@torch.no_grad()
def test_it_is_the_stage_of_that_stride(fine: int, stage: int, channels: int, side: int) -> None:
    encoder = encoder_of(fine)
    shape = encoder.shape.regions
    assert shape is not None
    assert shape.fine == (channels, side, side)
    pixels = torch.randn(3, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    found = shape.fine_map(encoder(pixels))
    _, maps = encoder.model.forward_intermediates(pixels)  # type: ignore[operator]
    torch.testing.assert_close(found, maps[stage], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_what_stands_before_it_is_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, without = encoder_of(8), encoder_of()
    shape = encoder.shape.regions
    assert shape is not None
    assert without.shape.regions is not None
    assert encoder.shape.tokens == without.shape.tokens + 16  # 8 x 8 x 8 numbers in rows of 32
    pixels = torch.randn(2, 3, *encoder.image_size)
    passes: list[Any] = []
    own: Any = encoder.model.forward_intermediates
    monkeypatch.setattr(
        encoder.model, "forward_intermediates", lambda *a, **k: passes.append(a) or own(*a, **k)
    )
    found = encoder.eager(pixels)
    assert len(passes) == 1
    expected = without.eager(pixels)
    assert torch.equal(found[:, : without.shape.tokens], expected)
    both = zip(shape.split(found), without.shape.regions.split(expected), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    if speedup("traced"):
        torch.testing.assert_close(encoder(pixels), found, atol=1e-4, rtol=1e-3)
        assert len(encoder._traced) == 1
        assert None not in encoder._traced.values()


def test_rows_are_filled_up_with_zeros() -> None:
    shape = RegionShape(patches=1, count=1, stages=1, classes=1, rows=1, fine=(2, 2, 1))
    features = torch.tensor([[[9.0, 9.0, 9.0], [5.0, 6.0, 0.0], [1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]])
    assert shape.fine_map(features).tolist() == [[[[1.0], [3.0]], [[2.0], [4.0]]]]
    _, stages, scores = shape.split(features)
    assert (stages.tolist(), scores.tolist()) == ([[[5.0]]], [[[6.0]]])


def test_features_without_it_keep_their_key() -> None:
    """Caches that were filled before there was such an option are found again."""
    encoder = encoder_of()
    config = (
        "VisionConfig(name='tiny-cnn', feature_layer=-1, keep_cls=False, resize='squash', "
        "regions=True)"
    )
    digest = hashlib.sha256(f"{fingerprint(encoder.model)} {config} (64, 64)".encode())
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    ramp = np.add.outer(np.arange(300), np.arange(180)[:, None] * np.arange(1, 4)) % 256
    for image in (noise, ramp.astype(np.uint8)):
        digest.update(encoder.preprocess(Image.fromarray(image)).numpy().tobytes())
    assert cache_key(encoder) == digest.hexdigest()[:16]
    assert len({cache_key(encoder_of(fine)) for fine in (0, 4, 8)}) == 3


def test_a_feature_cache_keeps_it(tmp_path: Any) -> None:
    encoder = encoder_of(8)
    assert encoder.shape.regions is not None
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    file = im.FileRef(tmp_path / "image.png")
    cache = FeatureCache(tmp_path / "features", PatchFeatures(encoder))
    cache.fill([file], quiet=True)
    expected = encoder(encoder.preprocess(image)[None])
    fine = encoder.shape.regions.fine_map(cache.get([file]))
    torch.testing.assert_close(fine, encoder.shape.regions.fine_map(expected), atol=1e-3, rtol=1e-3)


def test_strides_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match=r"fine = 7: .* of tiny-cnn, one of 2, 4, 8, 16, 32"):
        encoder_of(7)
    with pytest.raises(ConfigError, match="fine = 8 needs regions = true"):
        encoder_of(8, regions=False)
    with pytest.raises(ConfigError, match=r"VisionConfig\.fine = -8: expected at least 0"):
        encoder_of(-8)
    with pytest.raises(ValueError, match=r"hold no early map: set vision\.fine"):
        RegionShape(1, 1, 1, 1, 1).fine_map(torch.zeros(1, 2, 3))
