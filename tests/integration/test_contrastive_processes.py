"""Two processes train a dual encoder as one does, and a configuration file trains one too."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from isthmus.cli import main
from isthmus.model.clip.checkpoint import load_clip

WORKER = Path(__file__).with_name("contrastive_worker.py")
NAMES = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each name, as a newcomer has them."""
    folder = tmp_path_factory.mktemp("images")
    for i, name in enumerate(NAMES):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        for place in (folder, folder / "classes" / name):
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(noise).resize((32, 32), Image.Resampling.NEAREST)
            image.save(place / f"{name}.png")
    return folder


def logged(folder: Path, key: str) -> dict[int, Any]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {e["step"]: e[key] for e in map(json.loads, lines) if key in e}


@pytest.fixture(scope="module")
def outs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of one process, and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    runpy.run_path(str(WORKER))["main"](images, one)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, str(WORKER), str(images), str(two)]
        env = {**os.environ, **common, **ranks}
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("name", ["locked", "whole"])
def test_two_processes_are_one(outs: tuple[Path, Path], name: str) -> None:
    one, two = (out / name for out in outs)
    losses = logged(one, "loss")
    assert list(losses) == [1, 2, 3, 4, 5]
    assert logged(two, "loss") == pytest.approx(losses, abs=1e-5)
    assert logged(two, "evaluation") == logged(one, "evaluation")
    theirs = load_file(two / "model.safetensors")
    for key, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=2e-5)


# --- isthmus train ------------------------------------------------------------------------------

TOML = """
[dual_encoder]
vision = "tiny-vit"
text = "tiny-text"
width = 16
image_hidden = 32

[train]
steps = 100
batch_size = 6
lr = 1e-2
warmup = 2
evaluate_every = 50

[[data]]
path = "classes"
templates = ["a photo of {}.", "{}"]

[[data]]
path = "classes/../classes"
held_out = 1.0
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isthmus", "train", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture
def config(images: Path) -> Path:
    path = images / "clip.toml"
    path.write_text(TOML)
    return path


def test_a_configuration_file_trains(run: Any, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(config, "--out", out, "--json", "--set", "train.seed=1")
    assert (code, json.loads(printed)) == (0, {"model": str(out), "steps": 100})
    assert logged(out, "evaluation")[100] == {"classes-1": 1.0}
    model = load_clip(out)
    with torch.no_grad():
        shown = [config.parent / f"{name}.png" for name in NAMES]
        scores = model.encode_images(shown) @ model.encode_texts(NAMES).T
    assert scores.argmax(1).tolist() == list(range(6))
    # The same command again has nothing left to do, and more steps go on
    steps = ("--set", "train.steps=101", "--set", "train.seed=1")
    assert run(config, "--out", out, *steps)[0] == 0
    assert logged(out, "loss").keys() == {20, 40, 60, 80, 100, 101}


def test_the_plan_and_the_smoke_run(run: Any, config: Path, tmp_path: Path) -> None:
    code, printed, _ = run(config, "--dry-run", "--json")
    plan = json.loads(printed)
    assert code == 0
    assert (plan["steps"], plan["batch_size"]) == (100, 6)
    assert (plan["pairs"], plan["names"]) == ({"classes-0": 6}, {"classes-0": 6})
    assert plan["epochs"] == {"classes-0": 100.0}
    assert (plan["images"], plan["texts"]) == (6, 12)
    assert plan["cache"] == 4 * 32 * (6 + 12)
    # 32 -> 16 beside 32 -> 32 -> 16; 32 -> 16; the temperature
    heads = (32 * 16 + 16) + (32 * 32 + 32) + (32 * 16 + 16) + (32 * 16 + 16)
    assert plan["trained"] == heads + 1 < plan["parameters"]
    assert "12 texts" in run(config, "--dry-run")[1]
    assert run(config, "--smoke", "--out", tmp_path / "smoke")[0] == 0
    assert load_clip(tmp_path / "smoke").image.head.linear.out_features == 16


def test_the_shipped_configuration_runs_small(run: Any, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "configs" / "lit.toml"
    code, printed, errors = run(path, "--smoke", "--out", tmp_path / "run", "--json")
    assert (code, json.loads(printed)["steps"]) == (0, 2), errors
    assert load_clip(tmp_path / "run").loss == "softmax"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('[dual_encoder]\nvision = "tiny-vit"', "expects either name, or vision and text"),
        ('[dual_encoder]\nname = "tiny-clip"\nwidth = 8', "expected nothing beside it"),
        (TOML.replace("width", "widht"), 'unknown key "dual_encoder.widht": did you mean "width"'),
        (TOML.replace("steps = 100", "steps = 0"), "train.steps = 0: expected at least 1"),
        (TOML.replace('"a photo of {}."', '"a photo"'), "has no {}"),
        (TOML.split("[[data]]")[0], "expected at least one [[data]] table"),
        (TOML.replace('"classes"', '"nowhere"'), "nowhere"),
    ],
)
def test_bad_files_are_named(
    run: Any, config: Path, tmp_path: Path, change: str, message: str
) -> None:
    config.write_text(change)
    code, _, errors = run(config, "--out", tmp_path / "run")
    assert code == 2
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
