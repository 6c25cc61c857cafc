"""What every test shares: idle threads that sleep, a fixed seed, no network, the command line."""

from __future__ import annotations

import logging
import os
from typing import Any

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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: exit code, stdout, stderr."""
    from isthmus.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()  # what libraries said before
        monkeypatch.setattr("sys.argv", ["isthmus", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call
