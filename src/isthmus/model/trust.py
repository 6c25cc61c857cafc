"""Whether a head that was fitted to some images is to be trusted on another."""

from __future__ import annotations

from torch import Tensor

SHARPNESS = 8.0
"""How steeply trust falls with length: at half the radius it is 0.996, at twice 0.004."""


def trust(length: Tensor, radius: float | Tensor) -> Tensor:
    """Trust in a head, from 0 to 1, by the length of its whitened vectors.

        trust = 1 / (1 + (length / radius)^8)

    Where vectors are whitened by the images that the head was fitted to, their length is a
    Mahalanobis distance from the mean of these, which tells foreign images (Lee et al. 2018, arXiv
    1807.03888, take it from the means of classes).

    Args:
        length: Lengths, of any shape.
        radius: The length at which the head is trusted by half.

    Example:
        >>> import torch
        >>> [round(t, 3) for t in trust(torch.tensor([0.0, 2.0, 4.0]), 2.0).tolist()]
        [1.0, 0.5, 0.004]
    """
    return 1 / (1 + (length / radius) ** SHARPNESS)
