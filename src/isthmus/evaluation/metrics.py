"""What answers are worth, and how sure one can be of it. Pure: no torch.

Counts come with Wilson's interval (1927), two arms on the same questions with McNemar's exact test
(1947) and a paired bootstrap (Efron 1979): differences of a few points on a few hundred questions
are mostly noise, and unpaired intervals hide that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt

import numpy as np

from isthmus.errors import InputError
from isthmus.prompts.answers import vqa_normalize

Z95 = 1.959963984540054


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        right: Successes.
        n: Trials.
        z: Normal quantile; the default is for 95 %.

    Returns:
        Lower and upper end; (0, 1) without a trial.

    Example:
        >>> [round(x, 4) for x in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = p + z * z / (2 * n)
    reach = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def mcnemar(b: int, c: int) -> float:
    """McNemar's exact test: the two-sided p of b against c under even odds.

    Args:
        b: Questions that only the first arm has right.
        c: Questions that only the second arm has right.

    Returns:
        Probability of a split at least as uneven, if both arms were equally good.

    Example:
        >>> mcnemar(1, 5)
        0.21875
    """
    n, least = b + c, min(b, c)
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / (1 << n))  # integers of any size: no underflow before the division


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of mean(second) - mean(first), questions drawn in pairs.

    Args:
        first: What each question is worth in one arm.
        second: The same questions in the other.
        draws: Resamples.
        seed: Seed of the draws.

    Raises:
        ValueError: If the arms have different numbers of questions, or none.
    """
    if len(first) != len(second) or not len(first):
        raise InputError(f"{len(first)} and {len(second)} questions: expected pairs, at least one")
    return bootstrap_mean(np.subtract(second, first).tolist(), draws=draws, seed=seed)


def bootstrap_mean(
    values: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, by resampling."""
    found = np.asarray(values, dtype=np.float64)
    levels, counts = np.unique(found, return_counts=True)
    # a resample of n values is a multinomial draw over the few distinct ones
    drawn = np.random.default_rng(seed).multinomial(len(found), counts / len(found), size=draws)
    low, high = np.quantile(drawn @ levels / len(found), (0.025, 0.975))
    return float(low), float(high)


def majority(labels: Sequence[str]) -> tuple[str, float]:
    """The most common label, the first of equals, and its share.

    Example:
        >>> majority(["a", "b", "b"])[0]
        'b'
    """
    if not labels:
        return "", 0.0
    label, count = Counter(labels).most_common(1)[0]
    return label, count / len(labels)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy: min(matches / 3, 1), averaged over leaving each person out (Antol et al. 2015).

    Answers are always normalised on both sides. The official scorer leaves both as they are where
    all people agree, and so finds "Yes." wrong there and right elsewhere.

    Args:
        answer: What the model said.
        people: What people said, usually ten of them. A single answer stands for all.

    Example:
        >>> round(vqa_accuracy("yes", ["yes"] * 3 + ["no"] * 7), 3)
        0.9
    """
    got, said = vqa_normalize(answer), [vqa_normalize(p) for p in people]
    if len(said) == 1:
        return float(got == said[0])
    scores = [
        min(1.0, sum(other == got for j, other in enumerate(said) if j != i) / 3)
        for i in range(len(said))
    ]
    return sum(scores) / len(scores) if scores else 0.0


def edit_distance(got: str, expected: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of characters.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(expected) + 1))
    for i, a in enumerate(got, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(expected, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def character_error_rate(got: Sequence[str], expected: Sequence[str]) -> float:
    """Edit distances of all texts over the characters of all that was expected.

    It may exceed 1 where a model writes much more than there is to read.

    Example:
        >>> character_error_rate(["cat", "dg"], ["cat", "dog"])
        0.16666666666666666
    """
    wrong = sum(edit_distance(g, e) for g, e in zip(got, expected, strict=True))
    return wrong / max(1, sum(len(e) for e in expected))
