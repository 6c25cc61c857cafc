"""Linear discriminant analysis, solved for: directions in which groups of vectors differ.

Pure tensors, for recipes that fit a head or a connector's analysis instead of training it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import InputError

LEAST_SPREAD = 1e-3
"""The smallest standard deviation that a number is divided by."""


@dataclass(frozen=True)
class Discriminants:
    """What groups of vectors differ in: `linear @ ((x - mean) / std)`.

    Attributes:
        mean, std: (W,) of all vectors.
        linear: (D, W) directions, the one that tells most apart first; what differs within groups
            has the same spread in all of them.
        radius: The length within which most of the vectors lie.
        share: How much of what tells the groups apart is in these directions.
    """

    mean: Tensor
    std: Tensor
    linear: Tensor
    radius: Tensor
    share: float


@torch.no_grad()
def linear_discriminants(
    vectors: Tensor,
    groups: Sequence[Sequence[int]],
    *,
    dimensions: int,
    shrink: float,
    inside: float,
    between: Sequence[Sequence[int]] | None = None,
) -> Discriminants:
    """Linear discriminant analysis (Fisher 1936) of many groups of few vectors.

    Numbers are divided by their spread, what differs within groups is whitened away, and what is
    left of the groups' means, each of length 1, is kept in its first principal components. The
    covariance within groups is drawn to the identity (Ledoit and Wolf 2004), since it has more
    numbers than there are vectors.

    Args:
        vectors: (n, W).
        groups: The numbers of each group's vectors; groups of one add nothing to the covariance.
        dimensions: Directions D that are kept.
        shrink: How far the covariance is drawn to the identity; 1 whitens nothing.
        inside: Share of the vectors that lie within the radius.
        between: Groups whose means are told apart, where these are not all.

    Raises:
        InputError: If there are fewer groups or numbers than dimensions.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 4.0], [1.0, 1.0], [1.0, 3.0]])
        >>> groups = [[0, 1], [2, 3]]  # of spread in the second number, and told by the first
        >>> found = linear_discriminants(x, groups, dimensions=1, shrink=0.1, inside=1.0)
        >>> [round(abs(w), 1) for w in found.linear[0].tolist()]
        [3.2, 0.0]
    """
    between = groups if between is None else between
    width = vectors.shape[-1]
    if dimensions > min(len(between), width):
        raise InputError(
            f"got {len(between)} groups of vectors of {width} numbers: expected at least "
            f"{dimensions} of both, one for each dimension that is kept"
        )
    mean, std = vectors.mean(0), vectors.std(0).clamp(min=LEAST_SPREAD)
    standard = (vectors - mean) / std
    within = torch.zeros(width, width, dtype=vectors.dtype, device=vectors.device)
    for own in groups:
        if len(own) > 1:
            apart = standard[own] - standard[own].mean(0)
            within += apart.T @ apart
    identity = torch.eye(width, dtype=vectors.dtype, device=vectors.device)
    within = (1 - shrink) * within / within.diagonal().mean() + shrink * identity
    root = torch.linalg.cholesky(within)
    whiten = torch.linalg.solve_triangular(root, identity, upper=False)
    means = torch.stack([standard[own].mean(0) for own in between]) @ whiten.T
    means = F.normalize(means, dim=-1)
    _, values, axes = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    share = values[:dimensions].square().sum() / values.square().sum()
    linear = axes[:dimensions] @ whiten
    lengths = (standard @ linear.T).norm(dim=-1)
    radius = lengths.kthvalue(math.ceil(inside * len(lengths))).values
    return Discriminants(mean, std, linear, radius, float(share))
