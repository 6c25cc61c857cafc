"""Linear discriminant analysis, against what NumPy makes of its definition in another way."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from isthmus.errors import InputError
from isthmus.model.discriminants import linear_discriminants

WIDTH, SHRINK = 6, 0.2
SIZES = (5, 1, 8, 2, 4, 7, 3, 6)


def grouped() -> tuple[torch.Tensor, list[list[int]]]:
    """Groups of several sizes, one of a single vector; some numbers are large, some correlated."""
    chance = np.random.default_rng(0)
    mix = chance.normal(size=(WIDTH, WIDTH)) * 10.0 ** np.arange(-2, WIDTH - 2)
    centres = chance.normal(size=(len(SIZES), WIDTH)) * 2
    rows = [c + chance.normal(size=(n, WIDTH)) for c, n in zip(centres, SIZES, strict=True)]
    ends = [0, *np.cumsum(SIZES).tolist()]
    groups = [list(range(a, b)) for a, b in pairwise(ends)]
    return torch.from_numpy(np.concatenate(rows) @ mix + 3), groups


def by_definition(
    x: np.ndarray, groups: list[list[int]], kept: int, told: list[list[int]]
) -> tuple[np.ndarray, float]:
    """Inner products (n, n) of what is kept, with the symmetric root of the covariance."""
    standard = (x - x.mean(0)) / x.std(0, ddof=1)
    deviations = np.concatenate([standard[g] - standard[g].mean(0) for g in groups])
    within = deviations.T @ deviations
    within = (1 - SHRINK) * within * WIDTH / np.trace(within) + SHRINK * np.eye(WIDTH)
    values, axes = np.linalg.eigh(within)
    white = standard @ (axes / np.sqrt(values)) @ axes.T
    means = np.stack([white[g].mean(0) for g in told])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    spread, directions = np.linalg.eigh(np.cov(means.T))
    projected = white @ directions[:, -kept:]
    return projected @ projected.T, spread[-kept:].sum() / spread.sum()


@pytest.mark.parametrize("kept", [1, 3, WIDTH])
@pytest.mark.parametrize("some", [False, True])
def test_it_is_what_the_definition_says(kept: int, some: bool) -> None:
    x, groups = grouped()
    told = groups[1:] if some else groups
    found = linear_discriminants(
        x, groups, dimensions=kept, shrink=SHRINK, inside=0.9, between=told if some else None
    )
    vectors = ((x - found.mean) / found.std @ found.linear.T).numpy()
    expected, share = by_definition(x.numpy(), groups, kept, told)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-8)
    assert found.share == pytest.approx(share)
    lengths = np.sort(np.linalg.norm(vectors, axis=1))
    assert float(found.radius) == pytest.approx(lengths[32])  # the 33rd of 36: nine tenths


def test_with_all_that_is_drawn_to_the_identity_nothing_is_whitened() -> None:
    x, groups = grouped()
    found = linear_discriminants(x, groups, dimensions=WIDTH, shrink=1.0, inside=0.9)
    torch.testing.assert_close(found.linear.T @ found.linear, torch.eye(WIDTH).double())


def test_a_number_that_never_changes_is_divided_by_no_zero() -> None:
    x, groups = grouped()
    x[:, 2] = 7.0
    found = linear_discriminants(x, groups, dimensions=3, shrink=SHRINK, inside=0.9)
    assert found.linear.isfinite().all()
    assert float(found.std[2]) == pytest.approx(1e-3)


def test_more_dimensions_than_groups_are_refused() -> None:
    x, groups = grouped()
    with pytest.raises(InputError, match=r"got 2 groups of vectors of 6 .* at least 3 of both"):
        linear_discriminants(x, groups[:2], dimensions=3, shrink=SHRINK, inside=0.9)
    with pytest.raises(InputError, match=r"got 8 groups of vectors of 6 .* at least 7"):
        linear_discriminants(x, groups, dimensions=7, shrink=SHRINK, inside=0.9)
