"""Logits whose right labels are drawn from their own softmax, and images unlike each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


def drawn(n: int = 20_000, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, C) and right labels (n,) of a perfectly calibrated classifier."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, targets


@pytest.fixture(scope="session")
def draw() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes them."""
    return drawn


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 30 + i, 3), np.uint8)) for i in range(6)]
