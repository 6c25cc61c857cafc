"""A model that runs in milliseconds, and small tasks."""

from __future__ import annotations

import pytest

import isthmus as im
from isthmus.evaluation.task import Task
from isthmus.evaluation.tasks.grids import two_hop
from isthmus.generation.engine import Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2)))


@pytest.fixture
def grid() -> Task:
    """Questions whose rationales are short, for a model that is slow to write them."""
    from dataclasses import replace

    return replace(two_hop(n=6, support=8, side=2, size=32), max_rationale_tokens=8)
