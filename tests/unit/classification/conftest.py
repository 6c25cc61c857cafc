"""A small dual encoder whose scores differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from isthmus.model.clip.dual_encoder import DualEncoder


def built(loss: Any = "softmax") -> DualEncoder:
    torch.manual_seed(3)
    made = DualEncoder.join("tiny-vit", "tiny-text", width=12, loss=loss)
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="session")
def build() -> Callable[..., DualEncoder]:
    """Makes one, each time the same."""
    return built


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return built()
