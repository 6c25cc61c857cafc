"""What every test shares: idle threads that sleep, a fixed seed, no network."""

from __future__ import annotations

import logging
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


@pytest.fixture(autouse=True)
def _logs_reach_the_test(request: pytest.FixtureRequest) -> None:
    """A server sets up the package's log for its process; tests of other rooms start without."""
    if "serving" not in request.path.parts:
        logger = logging.getLogger("isthmus")
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
