"""Splits of labelled images by seed, the classes kept in proportion. Pure: no torch.

Temperatures and thresholds are fitted on one part and measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.errors import InputError

MOST_NAMED = 5
"""Classes that a note names before it only counts the rest."""


@dataclass(frozen=True)
class Halves:
    """Two halves of labelled images; together they are all images, and they share none.

    Attributes:
        seed: The seed that drew them.
        calibration: Numbers of the images to fit on, rising.
        test: Numbers of the images to measure on, rising.
        single: Classes with one image, which is in one half only.
        note: Names those classes; empty where there are none.
    """

    seed: int
    calibration: tuple[int, ...]
    test: tuple[int, ...]
    single: tuple[int, ...] = ()
    note: str = ""


def halves(targets: Sequence[int], seed: int, labels: Sequence[str] = ()) -> Halves:
    """Splits images into a calibration half and a test half, stratified by class.

    Each class is divided evenly. The odd image of a class, and the one image of a class that has no
    other, go to either half in turn, in random order. So the halves differ by one image at most,
    and every image is as likely to be in one as in the other.

    Args:
        targets: The class of each image (n,).
        seed: Seed of the draw; the same seed gives the same halves.
        labels: The classes' names for the note; numbers are shown without them.

    Raises:
        InputError: If there are fewer than two images.

    Example:
        >>> split = halves([0, 0, 1, 1, 2], seed=0, labels=["cat", "dog", "emu"])
        >>> sorted(split.calibration + split.test), split.single
        ([0, 1, 2, 3, 4], (2,))
        >>> split.note
        '1 class has one image, which is in one half only: "emu"'
    """
    classes = np.asarray(targets, dtype=np.int64)
    if len(classes) < 2:
        raise InputError(f"got {len(classes)} images to split: expected at least two; add images")
    rng = np.random.default_rng(seed)
    sides: tuple[list[int], list[int]] = ([], [])
    odd: list[int] = []
    single: list[int] = []
    for which in np.unique(classes):
        own = rng.permutation(np.flatnonzero(classes == which)).tolist()
        if len(own) == 1:
            single.append(int(which))
        half = len(own) // 2
        sides[0].extend(own[:half])
        sides[1].extend(own[half : 2 * half])
        odd.extend(own[2 * half :])
    first = int(rng.integers(2))
    for place, image in enumerate(rng.permutation(odd).tolist()):
        sides[(first + place) % 2].append(int(image))
    calibration, test = (tuple(sorted(side)) for side in sides)
    return Halves(seed, calibration, test, tuple(single), _named(single, labels))


def _named(single: Sequence[int], labels: Sequence[str]) -> str:
    if not single:
        return ""
    names = [f'"{labels[i]}"' if labels else str(i) for i in single]
    shown = ", ".join(names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    if len(names) == 1:
        return f"1 class has one image, which is in one half only: {shown}"
    return f"{len(names)} classes have one image each, which is in one half only: {shown}{more}"
