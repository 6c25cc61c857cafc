"""Recipes are scripts and no package: their modules are forgotten after each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[3] / "recipes" / "tiny"


@pytest.fixture
def recipe_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the shipped model's recipe, importable while a test runs."""
    monkeypatch.syspath_prepend(str(RECIPE))
    before = set(sys.modules)
    yield RECIPE
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == RECIPE:
            del sys.modules[name]
