"""Losses and every gradient are open_clip's, on one process and on two."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("open_clip")
WORKER = Path(__file__).with_name("losses_worker.py")
PROCESSES = 2
OURS = ["clip, 5", "clip, None", "siglip, 5", "siglip, None"]


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def run(folder: Path, processes: int) -> list[dict[str, list[Tensor]]]:
    """What each process found."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        env = {**os.environ, **common, **ranks}
        command = [sys.executable, str(WORKER), str(folder)]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    return run(tmp_path_factory.mktemp("two"), PROCESSES)


@pytest.fixture(scope="module")
def one() -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = runpy.run_path(str(WORKER))["all_losses"](0, 1)
    return found


def summed(two: list[dict[str, list[Tensor]]], name: str) -> list[Tensor]:
    """All processes' shares together: sums of scalars, features' gradients one after another."""
    each = [process[name] for process in two]
    return [
        torch.stack(parts).sum(0) if parts[0].ndim == 0 else torch.cat(parts)
        for parts in zip(*each, strict=True)
    ]


@pytest.mark.parametrize("name", OURS)
def test_one_process(one: dict[str, list[Tensor]], name: str) -> None:
    theirs = one[f"open_clip {name.partition(',')[0]}"]
    assert all(float(t.abs().max()) > 1e-3 for t in theirs[:4])
    for mine, other in zip(one[name], theirs, strict=True):
        close(mine, other)


@pytest.mark.parametrize("tile", ["5", "None"])
@pytest.mark.parametrize("way", ["clip", "clip, global", "siglip", "siglip, gather"])
def test_two_processes(two: list[dict[str, list[Tensor]]], way: str, tile: str) -> None:
    """DistributedDataParallel averages over processes, so theirs is as many times as large."""
    name = f"{way.partition(',')[0]}, {tile}"
    theirs = [t / PROCESSES for t in summed(two, f"open_clip {way}")]
    for mine, other in zip(summed(two, name), theirs, strict=True):
        close(mine, other)


@pytest.mark.parametrize("kind", ["5", "None", "neither", "positive"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_two_are_one(
    one: dict[str, list[Tensor]], two: list[dict[str, list[Tensor]]], family: str, kind: str
) -> None:
    for mine, other in zip(summed(two, f"{family}, {kind}"), one[f"{family}, {kind}"], strict=True):
        close(mine, other)


def test_processes_with_different_numbers_of_pairs(
    one: dict[str, list[Tensor]], two: list[dict[str, list[Tensor]]]
) -> None:
    for mine, other in zip(summed(two, "uneven"), one["clip, neither"], strict=True):
        close(mine, other)
