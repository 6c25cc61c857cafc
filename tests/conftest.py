"""What every test shares: idle threads that sleep, a fixed seed, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is loaded: beside another process, threads that wait by spinning cost minutes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws its random weights from the same seed, whatever ran before it."""
    torch.manual_seed(0)
