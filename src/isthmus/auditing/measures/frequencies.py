"""Whether classes that were frequent in training are recognised better."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError

WORD = re.compile(r"\w+")
ROUNDING = 1e-12


@dataclass(frozen=True)
class FrequencyCorrelation:
    """Spearman's rank correlation of training frequency and recall.

    Attributes:
        classes: Classes with a frequency and a recall.
        rho: The correlation, -1 to 1; None where it is not defined.
        p: Two-sided permutation p; None where rho is.
        note: Why there is none; empty otherwise.
    """

    classes: int
    rho: float | None
    p: float | None
    note: str


def frequency_correlation(
    frequencies: Sequence[float],
    recalls: Sequence[float | None],
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> FrequencyCorrelation:
    """Spearman's correlation of log training frequency and recall, over classes.

    Ranks are the same with and without the logarithm, and a frequency of 0 has one. Recall grows
    about linearly with the logarithm of the frequency of a concept (Udandarao et al. 2024, arXiv
    2404.04125).

    Args:
        frequencies: Training images or captions of each class (C,).
        recalls: Recall of each class (C,); None is left out.
        permutations: Permutations of the recalls.
        seed: Seed of the permutations.

    Raises:
        InputError: If the lengths differ or a frequency is below 0.

    Example:
        >>> found = frequency_correlation([10, 100, 1000, 10000, 0], [0.1, 0.3, 0.6, 0.7, None])
        >>> found.rho, found.classes
        (1.0, 4)
    """
    if len(frequencies) != len(recalls):
        raise InputError(f"got {len(frequencies)} frequencies and {len(recalls)} recalls")
    known = [(f, r) for f, r in zip(frequencies, recalls, strict=True) if r is not None]
    if any(f < 0 for f, _ in known):
        raise InputError("a frequency is below 0: expected counts")
    x, y = (_ranks(np.array([row[i] for row in known], dtype=np.float64)) for i in (0, 1))
    if len(known) < 3 or not x.any() or not y.any():
        return FrequencyCorrelation(
            classes=len(known),
            rho=None,
            p=None,
            note="Fewer than three classes, or all alike: no correlation is defined.",
        )
    scale = float(np.sqrt(x @ x * (y @ y)))
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(y, (permutations, 1)), axis=1) @ x / scale
    rho = float(x @ y) / scale
    extreme = int((np.abs(drawn) >= abs(rho) - ROUNDING).sum())
    return FrequencyCorrelation(
        classes=len(known), rho=rho, p=(1 + extreme) / (1 + permutations), note=""
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks less their mean; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - (counts - 1) / 2
    return np.asarray(middle[which] - (len(values) + 1) / 2)


def caption_frequencies(captions: Iterable[str], labels: Sequence[str]) -> dict[str, int]:
    """How many captions name each label, in whole words, whatever their case.

    Punctuation and spaces between words do not matter. A plural is another word, a caption counts
    once, and "apple pie" names "apple" too.

    Args:
        captions: Captions of the training images.
        labels: The labels (C,).

    Returns:
        Label to the number of captions.

    Raises:
        InputError: If a label has no word.

    Example:
        >>> captions = ["A cat's tail.", "Tabby-cat, cat!", "category"]
        >>> caption_frequencies(captions, ["cat", "tabby cat"])
        {'cat': 2, 'tabby cat': 1}
    """
    starting: dict[str, list[tuple[str, list[str]]]] = {}
    for label in labels:
        words = _words(label)
        if not words:
            raise InputError(f'the label "{label}" has no word that a caption could name')
        starting.setdefault(words[0], []).append((label, words))
    counts = dict.fromkeys(labels, 0)
    for caption in captions:
        said = _words(caption)
        named = {
            label
            for i, word in enumerate(said)
            for label, words in starting.get(word, ())
            if said[i : i + len(words)] == words
        }
        for label in named:
            counts[label] += 1
    return counts


def _words(text: str) -> list[str]:
    # One form of each letter with an accent, which could be two characters
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())
