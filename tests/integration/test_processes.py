"""Several processes do what one does, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from isthmus.config.registry import CONNECTORS

WORKER = Path(__file__).with_name("training_worker.py")
EVERY_DESIGN = Path(__file__).with_name("sharding_worker.py")
LR = 3e-3
"""The learning rate of the first worker."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, name in enumerate(("red", "green", "blue", "white", "black", "gray")):
        noise = Image.effect_noise((32, 32), 40 + 20 * i).convert("RGB")
        noise.rotate(i * 45).save(folder / f"{name}.png")
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(
    images: Path, out: Path, processes: int, worker: Path = WORKER, **options: Any
) -> list[int]:
    """Runs a worker in so many processes; their exit codes."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        env = {**os.environ, **common, **(ranks if processes > 1 else {}), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(worker), str(images), str(out), json.dumps(options)]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    ends = []
    for process in running:
        _, errors = process.communicate(timeout=300)
        if process.returncode and "kill_at" not in options:
            print(errors)
        ends.append(process.returncode)
    return ends


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {e["step"]: e["loss"] for e in map(json.loads, lines) if "loss" in e}


def held_out(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [e["held_out_loss"] for e in map(json.loads, lines) if "held_out_loss" in e]


@pytest.fixture(scope="module")
def two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes."""
    out = tmp_path_factory.mktemp("two")
    assert start(images, out, 2) == [0, 0]
    return out


def test_two_processes_have_the_losses_of_one(images: Path, two: Path, tmp_path: Path) -> None:
    assert start(images, tmp_path, 1) == [0]
    one = losses(tmp_path)
    assert len(one) == 6
    # Adam divides small differences of summing order by small gradients, so they grow with steps
    assert losses(two) == pytest.approx(one, abs=2e-3)
    assert [losses(two)[s] for s in (1, 2)] == pytest.approx([one[s] for s in (1, 2)], abs=2e-5)
    assert held_out(two) == pytest.approx(held_out(tmp_path), abs=2e-3)


def test_sharded_parameters_change_nothing(images: Path, two: Path, tmp_path: Path) -> None:
    assert start(images, tmp_path, 2, sharding="fsdp") == [0, 0]
    assert losses(tmp_path) == pytest.approx(losses(two), abs=1e-4)
    whole, sharded = (load_file(f / "model.safetensors") for f in (two, tmp_path))
    assert whole.keys() == sharded.keys()
    for name, tensor in whole.items():
        # Adam divides small differences of summing order by small gradients: a few are a tenth of a
        # step's length apart, and the others are not
        apart = (tensor - sharded[name]).abs()
        assert float(apart.mean()) < 1e-6, name
        assert float(apart.max()) < 0.1 * LR, name


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_killed_and_started_again(images: Path, two: Path, tmp_path: Path, sharding: str) -> None:
    ends = start(images, tmp_path, 2, sharding=sharding, kill_at=5)
    assert ends == [-9, -9]
    assert start(images, tmp_path, 2, sharding=sharding) == [0, 0]
    tolerance = 0.0 if sharding == "ddp" else 1e-4
    assert losses(tmp_path) == pytest.approx(losses(two), abs=tolerance)


def test_every_connector_and_fusion_in_shards(images: Path, tmp_path: Path) -> None:
    """Each design has the losses and the weights of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    for out, processes in ((one, 1), (two, 2)):
        out.mkdir()
        assert start(images, out, processes, EVERY_DESIGN) == [0] * processes
    expected = json.loads((one / "losses.json").read_text())
    assert len(expected) == 2 * len(CONNECTORS.built_in()) + 2
    found = json.loads((two / "losses.json").read_text())
    for name, losses in expected.items():
        assert found[name] == pytest.approx(losses, abs=1e-4), name
        whole, sharded = (load_file(f / name / "model.safetensors") for f in (one, two))
        assert whole.keys() == sharded.keys()
        for key, tensor in whole.items():
            # Adam's first steps are of size lr whatever the gradient's: its sign alone must agree
            assert float((tensor - sharded[key]).abs().max()) < 3e-3, (name, key)


def test_adapters_in_shards(images: Path, tmp_path: Path) -> None:
    for name, sharding in (("whole", "ddp"), ("shards", "fsdp")):
        options = {"lora": 2, "precision": "bf16", "sharding": sharding}
        assert start(images, tmp_path / name, 2, **options) == [0, 0]
    assert losses(tmp_path / "shards") == pytest.approx(losses(tmp_path / "whole"), abs=2e-2)


def test_a_single_process_killed_and_started_again(images: Path, tmp_path: Path) -> None:
    assert start(images, tmp_path / "whole", 1, pack=128, mixture="accumulate") == [0]
    assert start(images, tmp_path / "cut", 1, pack=128, mixture="accumulate", kill_at=3) == [-9]
    assert start(images, tmp_path / "cut", 1, pack=128, mixture="accumulate") == [0]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_step_that_cannot_be_shared_evenly(images: Path, tmp_path: Path) -> None:
    assert start(images, tmp_path, 2, batch_size=7) == [1, 1]
