"""Halves share no image, keep the classes' proportions, and favour neither side."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from isthmus.auditing.splits import halves
from isthmus.errors import InputError


@pytest.mark.parametrize("seed", range(20))
def test_every_image_is_in_one_half_and_no_class_is_lopsided(seed: int) -> None:
    targets = np.random.default_rng(seed).integers(0, 12, size=61).tolist()
    split = halves(targets, seed)
    assert not set(split.calibration) & set(split.test)
    assert sorted(split.calibration + split.test) == list(range(61))
    assert abs(len(split.calibration) - len(split.test)) <= 1
    one, other = (Counter(targets[i] for i in part) for part in (split.calibration, split.test))
    assert all(abs(one[c] - other[c]) <= 1 for c in set(targets))


def test_the_seed_alone_decides() -> None:
    targets = [0, 0, 0, 1, 1, 1, 2]
    assert halves(targets, 3) == halves(targets, 3)
    assert len({halves(targets, seed).test for seed in range(10)}) > 5


@pytest.mark.parametrize("alone", [1, 2])
def test_each_image_is_as_often_in_either_half(alone: int) -> None:
    targets = [0] * 4 + [1] * 3 + [2, 3][:alone]  # even, odd and alone
    inside = np.zeros(len(targets))
    for seed in range(2000):
        inside[list(halves(targets, seed).test)] += 1
    assert (np.abs(inside / 2000 - 0.5) < 4 * 0.5 / np.sqrt(2000)).all()


def test_classes_with_one_image_are_named() -> None:
    targets = [0, 0, 1, 2, 2, 3]
    split = halves(targets, 0, labels=["cat", "dog", "emu", "fox"])
    assert split.single == (1, 3)
    assert split.note == '2 classes have one image each, which is in one half only: "dog", "fox"'
    for image in (2, 5):
        assert (image in split.calibration) != (image in split.test)
    assert halves([0, 0, 1, 1], 0).note == ""
    assert halves(list(range(9)), 0).note.endswith(": 0, 1, 2, 3, 4 and 4 more")


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(InputError, match="got 1 images to split: expected at least two"):
        halves([0], 0)
