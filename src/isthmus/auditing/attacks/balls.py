"""Balls around images: what a perturbation may be, in L-inf and in L2.

Pixels are in [0, 1], so a radius of 8/255 in L-inf is 8 levels of a displayed image. In L2 it is
the length over all pixels and channels.

Letters: B images.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


def radii(eps: float | Tensor, pixels: Tensor) -> Tensor:
    """A radius for each image, (B, 1, 1, 1).

    Args:
        eps: One number, or one for each image (B,).
        pixels: The images' pixels (B, 3, H, W).

    Example:
        >>> radii(0.5, torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """
    told = torch.as_tensor(eps, dtype=pixels.dtype, device=pixels.device)
    return told.expand(len(pixels))[:, None, None, None]


def lengths(delta: Tensor) -> Tensor:
    """L2 norms (B, 1, 1, 1) of perturbations (B, 3, H, W).

    Example:
        >>> lengths(torch.ones(1, 1, 2, 2)).item()
        2.0
    """
    return delta.flatten(1).norm(dim=1)[:, None, None, None]


def distances(tried: Tensor, pixels: Tensor, norm: Norm) -> Tensor:
    """How far perturbed pixels are from the images' (B,), in pixel units.

    Args:
        tried: Perturbed pixels (B, 3, H, W).
        pixels: The images' pixels (B, 3, H, W).
        norm: "linf" or "l2".

    Example:
        >>> distances(torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5), "linf")
        tensor([0.5000])
    """
    delta = tried - pixels
    return delta.abs().flatten(1).amax(dim=1) if norm == "linf" else lengths(delta).flatten()


def project(tried: Tensor, pixels: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
    """The nearest perturbation within the ball, then within [0, 1]; what is not finite is undone.

    Args:
        tried: Perturbed pixels (B, 3, H, W).
        pixels: The images' pixels (B, 3, H, W) in [0, 1].
        norm: "linf" or "l2".
        eps: The ball's radius, one number or one for each image (B,).

    Example:
        >>> project(torch.full((1, 3, 1, 1), 2.0), torch.zeros(1, 3, 1, 1), "linf", 0.5).tolist()
        [[[[0.5]], [[0.5]], [[0.5]]]]
    """
    radius = radii(eps, pixels)
    delta = torch.where(tried.isfinite(), tried - pixels, 0.0)
    if norm == "linf":
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        delta = delta * (radius / lengths(delta).clamp(min=1e-12)).clamp(max=1)
    return (pixels + delta).clamp(0, 1)


def random_step(pixels: Tensor, norm: Norm, eps: float, generator: torch.Generator) -> Tensor:
    """A random perturbation (B, 3, H, W) of the full size: a corner, or a point of the sphere.

    Args:
        pixels: The images' pixels (B, 3, H, W).
        norm: "linf" or "l2".
        eps: The ball's radius.
        generator: On the CPU.

    Example:
        >>> step = random_step(torch.zeros(1, 3, 2, 2), "l2", 0.5, torch.Generator())
        >>> round(float(lengths(step)), 4)
        0.5
    """
    delta = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return delta.sign() * eps if norm == "linf" else delta * (eps / lengths(delta))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the global random states of Python, NumPy and PyTorch (CPU) come from a seed.

    Libraries that take no generator draw from them. They are put back afterwards.

    Args:
        seed: The seed.

    Example:
        >>> with seeded(0):
        ...     first = np.random.rand()
        >>> with seeded(0):
        ...     first == np.random.rand()
        True
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
