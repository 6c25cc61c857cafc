"""Corruptions: all 15, their severities, their seeds, and the mean error by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from isthmus.auditing.attacks.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupted,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from isthmus.errors import ConfigError, InputError

pytest.importorskip("imagecorruptions")
RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Soft shapes of 48 x 40 pixels, with edges."""
    rows, columns = np.mgrid[0:40, 0:48]
    waves = [np.sin(rows / a) + np.cos(columns / b) for a, b in ((5, 7), (9, 4), (6, 6))]
    levels = 128 + 50 * np.stack(waves, axis=2)
    levels[10:20, 10:30] = (230, 30, 60)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_follows_its_seed_and_grows(name: str, photo: Image.Image) -> None:
    before = photo.tobytes()
    own = np.asarray(photo, dtype=float)
    changes = []
    for severity in SEVERITIES:
        found = corrupted(photo, name, severity, seed=1)
        assert (found.size, found.mode) == (photo.size, "RGB")
        assert found.tobytes() == corrupted(photo, name, severity, seed=1).tobytes()
        changes.append(float(np.abs(np.asarray(found, dtype=float) - own).mean()))
    other = corrupted(photo, name, 3, seed=2)
    assert (other.tobytes() != corrupted(photo, name, 3, seed=1).tobytes()) == (name in RANDOM)
    assert changes[0] > 0.5
    if name != "frost":  # which dims the image and lays a picture over it, as it happens to look
        assert changes[4] > changes[0]
    assert photo.tobytes() == before


def test_the_global_random_states_are_left_as_they_were(photo: Image.Image) -> None:
    drawn = []
    for corrupt in (False, True):
        np.random.seed(3)
        random.seed(3)
        if corrupt:
            for name in CORRUPTIONS:
                corrupted(photo, name, 2, seed=8)
        drawn.append((np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


def test_mean_errors_by_hand() -> None:
    errors = {"fog": [0.1, 0.3], "snow": [0.2, 0.4, 0.6]}
    assert mean_corruption_error(errors) == pytest.approx((0.2 + 0.4) / 2)  # not 1.6 / 5
    assert relative_mean_corruption_error(errors, 0.1) == pytest.approx((0.1 + 0.3) / 2)
    assert relative_mean_corruption_error(errors, 0.5) == pytest.approx(-0.2)


def test_bad_input_is_told(photo: Image.Image) -> None:
    with pytest.raises(ConfigError, match='did you mean "snow"'):
        corrupted(photo, "snwo", 1)
    with pytest.raises(ConfigError, match="1 to 5"):
        corrupted(photo, "snow", 0)
    with pytest.raises(InputError, match="32x32"):
        corrupted(photo.resize((40, 31)), "snow", 1)
    for errors in ({}, {"fog": []}, {"fog": [1.2]}, {"fog": [float("nan")]}):
        with pytest.raises(InputError):
            mean_corruption_error(errors)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="clean"):
        relative_mean_corruption_error({"fog": [0.5]}, -0.1)
