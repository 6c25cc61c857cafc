"""Which images lie near which words, and whether shape or texture decides.

Association tests ask whether one set of images is nearer to one set of words than another set of
images is.

Letters: N vectors, D width of the common space, P partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isthmus.auditing.measures.classes import Interval, Numbers, checked_predictions
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

Vectors = Tensor | NDArray[Any]
"""Vectors (N, D), on the CPU, of any length but 0."""
Array = NDArray[np.float64]
MOST_EXACT = 20_000
"""Up to so many partitions, all are counted."""
ROUNDING = 1e-12
"""Differences of associations that are this close count as equal."""
RELIABILITY = (
    "An effect size is in standard deviations of the associations, not in similarity. Where all "
    "similarities are nearly alike, a difference too small to matter has a large effect size: read "
    "it with the effects of each set and the mean similarities."
)


@dataclass(frozen=True)
class SingleAssociation:
    """How one set leans between two sets of attributes.

    Attributes:
        effect_size: In standard deviations, positive for the first attribute; None where all
            similarities are equal.
        difference: Of the mean cosine similarities with the attributes, -2 to 2.
        p: One-sided permutation p: that the first attribute is not nearer.
        p_two_sided: That neither is nearer.
        exact: Whether all partitions were counted.
    """

    effect_size: float | None
    difference: float
    p: float
    p_two_sided: float
    exact: bool


@dataclass(frozen=True)
class Similarity:
    """Cosine similarities of all pairs of two sets: mean and standard deviation (None for one)."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Association:
    """An association test, with the three levels of ML-EAT.

    Attributes:
        effect_size: Level 1: Cohen's d of the associations of both targets, positive where the
            first target goes with the first attribute, as the second does with the second.
        difference: Of the mean associations of both targets, in cosine similarity.
        p: One-sided permutation p, as in the papers.
        p_two_sided: The same for either direction.
        exact: Whether all partitions were counted.
        partitions: Partitions counted.
        first: Level 2: how the first target leans.
        second: How the second does.
        similarities: Level 3: by "first/A", "first/B", "second/A" and "second/B".
        note: How far to trust the effect size.
    """

    effect_size: float | None
    difference: float
    p: float
    p_two_sided: float
    exact: bool
    partitions: int
    first: SingleAssociation
    second: SingleAssociation
    similarities: dict[str, Similarity]
    note: str


def association(
    first: Vectors,
    second: Vectors,
    a: Vectors,
    b: Vectors,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> Association:
    """Tests whether the first target goes with attribute A more than the second target does.

    The word embedding association test (Caliskan et al. 2017, arXiv 1608.07187), with images as
    targets as in iEAT (Steed and Caliskan 2021, arXiv 2010.15052). An element's association is its
    mean cosine similarity with A less that with B. The effect size is the difference of the mean
    associations over the standard deviation (N - 1) of all of them. The p-value is the share of
    partitions of the elements into sets of these sizes whose difference is at least as large; the
    papers count only larger ones. The levels below are those of ML-EAT (Wolfe et al. 2024, arXiv
    2408.01966).

    Args:
        first: Vectors of the first target (N, D), such as images of one group.
        second: Vectors of the second target.
        a: Vectors of the first attribute, such as words or prompts.
        b: Vectors of the second attribute.
        permutations: Partitions to draw where there are more than `MOST_EXACT`.
        seed: Seed of the draws.

    Raises:
        InputError: If a set is empty, of another width, or holds a vector of length 0.

    Example:
        >>> a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> found = association(np.array([[1.0, 0.1], [1.0, 0.2]]), b, a, b)
        >>> found.difference > 0, found.exact, found.partitions
        (True, True, 3)
    """
    x, y, left, right = _unit(first=first, second=second, a=a, b=b)
    own = [_association(s, left, right) for s in (x, y)]
    test = _partition_test(own[0], own[1], permutations, seed)
    sets = {"first": x, "second": y}
    levels = {name: _single(s, left, right, permutations, seed) for name, s in sets.items()}
    return Association(
        **test,
        partitions=comb(len(x) + len(y), len(x)) if test["exact"] else permutations,
        first=levels["first"],
        second=levels["second"],
        similarities={
            f"{name}/{attribute}": _similarity(s @ words.T)
            for name, s in sets.items()
            for attribute, words in (("A", left), ("B", right))
        },
        note=_note(test["effect_size"], levels["first"], levels["second"]),
    )


def single_association(
    target: Vectors, a: Vectors, b: Vectors, *, permutations: int = 10_000, seed: int = 0
) -> SingleAssociation:
    """Tests whether one set is nearer to attribute A than to attribute B.

    For one vector this is the single-category test SC-WEAT (Caliskan et al. 2017, there WEFAT):
    the difference of its mean similarities with A and B over the standard deviation (N - 1) of all
    of them. For several, each attribute's similarity is first averaged over the target, as in
    level 2 of ML-EAT (Wolfe et al. 2024). Attributes are what is permuted.

    Args:
        target: Vectors (N, D).
        a: Vectors of the first attribute.
        b: Vectors of the second attribute.
        permutations: Partitions to draw where there are more than `MOST_EXACT`.
        seed: Seed of the draws.

    Raises:
        InputError: If a set is empty, of another width, or holds a vector of length 0.

    Example:
        >>> words = np.eye(2)
        >>> found = single_association(words[:1], words[:1], words[1:])
        >>> found.difference, round(found.effect_size, 4), found.p
        (1.0, 1.4142, 0.5)
    """
    own, left, right = _unit(target=target, a=a, b=b)
    return _single(own, left, right, permutations, seed)


def _unit(**sets: Vectors) -> list[Array]:
    """Rows of length 1, in float64."""
    found: list[Array] = []
    for name, given in sets.items():
        rows = np.asarray(given, dtype=np.float64)
        if rows.ndim != 2 or not len(rows):
            raise InputError(f'the set "{name}" has shape {rows.shape}: expected (N, D), N over 0')
        if found and rows.shape[1] != found[0].shape[1]:
            raise InputError(
                f'vectors of the set "{name}" have width {rows.shape[1]}, others '
                f"{found[0].shape[1]}: expected one model's vectors"
            )
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise InputError(
                f'the set "{name}" holds a vector of length 0 or not of finite numbers: it has no '
                "direction, leave it out"
            )
        found.append(rows / lengths)
    return found


def _association(target: Array, a: Array, b: Array) -> Array:
    return np.asarray((target @ a.T).mean(axis=1) - (target @ b.T).mean(axis=1))


def _single(target: Array, a: Array, b: Array, permutations: int, seed: int) -> SingleAssociation:
    means = [(target @ words.T).mean(axis=0) for words in (a, b)]
    return SingleAssociation(**_partition_test(means[0], means[1], permutations, seed))


def _similarity(found: Array) -> Similarity:
    return Similarity(
        mean=float(found.mean()), sd=float(found.std(ddof=1)) if found.size > 1 else None
    )


def _partition_test(first: Array, second: Array, permutations: int, seed: int) -> dict[str, Any]:
    """The difference of two means, its size in deviations, and p over all partitions."""
    both, size = np.concatenate([first, second]), len(first)
    n, total = len(both), both.sum()
    observed = float(first.mean() - second.mean())
    exact = comb(n, size) <= MOST_EXACT
    rng = np.random.default_rng(seed)
    as_large = as_far = seen = 0
    while seen < (1 if exact else permutations):
        if exact:
            rows = np.array(list(combinations(range(n), size)))
        else:  # in parts, so that memory is bounded
            part = min(permutations - seen, max(1, 2_000_000 // n))
            rows = rng.random((part, n)).argpartition(size - 1, axis=1)[:, :size]
        sums = both[rows].sum(axis=1)
        drawn = sums / size - (total - sums) / (n - size)
        as_large += int((drawn >= observed - ROUNDING).sum())
        as_far += int((np.abs(drawn) >= abs(observed) - ROUNDING).sum())
        seen += len(rows)
    added = 0 if exact else 1  # the observed partition is among all, and rarely among drawn ones
    sd = float(both.std(ddof=1))
    return {
        "effect_size": observed / sd if sd > ROUNDING else None,
        "difference": observed,
        "p": (as_large + added) / (seen + added),
        "p_two_sided": (as_far + added) / (seen + added),
        "exact": exact,
    }


def _note(effect: float | None, first: SingleAssociation, second: SingleAssociation) -> str:
    told = [RELIABILITY]
    if effect is None:
        told.insert(0, "All associations are equal, so there is no effect size.")
    elif first.difference * second.difference > 0:
        nearer = "A" if first.difference > 0 else "B"
        told.insert(0, f"Both sets are nearer to {nearer}: the test compares only how much.")
    return " ".join(told)


# --- Shape and texture ------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapeBias:
    """What decides on images whose shape and texture are of different classes.

    Attributes:
        n: Images whose shape and texture differ.
        same: Images where they do not, left out.
        shape: Decisions for the shape.
        texture: Decisions for the texture.
        neither: Decisions for any other class.
        shape_share: shape / (shape + texture); None without such decisions.
        interval: Wilson's interval of it.
        by_class: Label of the shape to the share among its images.
    """

    n: int
    same: int
    shape: int
    texture: int
    neither: int
    shape_share: float | None
    interval: Interval | None
    by_class: dict[str, float | None]


def shape_bias(
    shapes: Numbers, textures: Numbers, predicted: Numbers, labels: Sequence[str]
) -> ShapeBias:
    """The share of shape decisions on cue-conflict images (Geirhos et al. 2019, arXiv 1811.12231).

    Only decisions for the shape or the texture count, and only images where both differ. The paper
    found about 0.22 for a ResNet-50 and 0.96 for people.

    Args:
        shapes: Class of each image's shape (n,).
        textures: Class of its texture (n,).
        predicted: The predicted class (n,).
        labels: The labels (C,).

    Raises:
        InputError: If there are no images, their numbers differ, or one is no class.

    Example:
        >>> found = shape_bias([0, 0, 1], [1, 1, 0], [0, 1, 1], ["cat", "elephant"])
        >>> found.shape_share, found.by_class
        (0.6666666666666666, {'cat': 0.5, 'elephant': 1.0})
    """
    outline, said = checked_predictions(shapes, predicted, len(labels))
    surface, _ = checked_predictions(textures, predicted, len(labels))
    conflict = outline != surface
    by_shape, by_texture = conflict & (said == outline), conflict & (said == surface)
    shape, texture, n = int(by_shape.sum()), int(by_texture.sum()), int(conflict.sum())

    def share(of: NDArray[np.bool_]) -> float | None:
        decided = int((of & (by_shape | by_texture)).sum())
        return int((of & by_shape).sum()) / decided if decided else None

    decided = shape + texture
    return ShapeBias(
        n=n,
        same=len(said) - n,
        shape=shape,
        texture=texture,
        neither=n - decided,
        shape_share=share(conflict),
        interval=wilson(shape, decided) if decided else None,
        by_class={labels[c]: share(outline == c) for c in np.unique(outline[conflict])},
    )
