"""Every benchmark's quick mode runs, and prints the ratio that the benchmark exists for.

Their numbers are not looked at. A new file in `benchmarks` is covered by itself.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if "\ndef main(" in p.read_text("utf-8"))
PEERS = {
    "closed_labels": "open_flamingo",
    "contrastive_loss": "open_clip",
    "decode": "open_flamingo",
    "train_step": "open_flamingo",
}
RATIO = re.compile(r"^ratio (\S.*?) ([\d.]+)(?: \(.*\))?$", re.MULTILINE)


def run(name: str, path: Path | None = None) -> str:
    """What a benchmark's quick mode prints; `path` stands before all other places of modules."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--quick"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_benchmarks_are_found() -> None:
    assert {"decode", "serve", "soak", "train_step"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_quick_mode_prints_a_ratio(name: str) -> None:
    printed = run(name)
    ratios = {key: float(value) for key, value in RATIO.findall(printed)}
    compared = "left out" not in printed  # with a peer that is missing there may be no ratio
    assert ratios or not compared, printed
    assert all(math.isfinite(value) and value > 0 for value in ratios.values()), ratios


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_peer_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{PEERS[name]}.py").write_text("raise ImportError('not here')", encoding="utf-8")
    assert re.search(r"not installed and left out \(not here\): pip install", run(name, tmp_path))
