"""`isthmus train`, `data check` and `features` from end to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isthmus as im
from isthmus.cli import main
from isthmus.model.features import PatchFeatures

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(
    p for p in (ROOT / "configs").glob("*.toml") if isinstance(im.read_run(p).model, im.ModelConfig)
)
TINY = """
[vision]
name = "tiny-vit"
[language]
name = "tiny-lm"
[connector]
type = "mlp"
[train]
steps = {steps}
batch_size = 4
warmup = 2
save_every = 2
log_every = 1
[[data]]
path = "photos"
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isthmus", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_episodes_of_a_folder_train_adapters_of_the_shipped_model(run: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("fork", "cup", "key", "hat", "pen"):
        (tmp_path / "things" / name).mkdir(parents=True)
        for number in range(6):
            pixels = noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "things" / name / f"{number}.png")
    out = tmp_path / "out"
    less = ("--set", "train.steps=2", "--set", "train.batch_size=1", "--set", "train.warmup=1")
    less += ("--set", "train.evaluate_every=0")
    options = ("--data", tmp_path / "things", "--episodes", "--out", out, *less, "--quiet")
    code, _, err = run("train", *options)
    assert code == 0, err
    model = im.load(out, device="cpu")
    adapter = model.fusion.adapter
    assert adapter is not None
    assert adapter.config.when == "after"
    moved = [n for n, p in adapter.named_parameters() if "lora_B" in n and bool(p.any())]
    assert moved


def test_episodes_are_for_a_run_without_a_configuration(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TINY.format(steps=2))
    code, _, err = run("train", config, "--episodes", "--out", tmp_path / "out")
    assert code == 2
    assert "add a table [data.episodes]" in err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Captions beside images, as a newcomer has them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, colour in enumerate(("red", "green", "blue", "white", "black", "gray")):
        noise = generator.integers(0, 60, (48, 64, 3), np.uint8)
        tint = np.array(Image.new("RGB", (64, 48), colour)) // 2
        Image.fromarray(noise + tint).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"something {colour}\n")
    return folder


@pytest.mark.slow
def test_a_folder_of_photos_and_no_configuration(run: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    command = ("train", "--data", photos, "--out", out, "--quiet", "--threads", 1)
    command += ("--set", "train.precision=fp32", "--set", "train.lr=1e-3")
    quick = ("--set", "train.steps=30", "--set", "train.warmup=3")
    code, said, errors = run(*command, *quick)
    assert (code, said.strip()) == (0, f"saved {out}"), errors
    code, said, _ = run("ask", photos / "2.png", "What is in the picture?", "--model", out)
    assert (code, said.strip()) == (0, "something blue")
    assert "<h2>Loss</h2>" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_each_published_design_runs_small(run: Any, config: Path, tmp_path: Path) -> None:
    code, said, errors = run("train", config, "--smoke", "--out", tmp_path / "run", "--json")
    assert code == 0, errors
    assert json.loads(said)["steps"] == 3
    assert im.load(tmp_path / "run").trained_parameters()


def test_the_plan_costs_nothing(run: Any, photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TINY.format(steps=6))
    code, said, errors = run("train", config, "--dry-run")
    assert code == 0, errors
    assert "4 visual tokens" not in said
    assert "an image becomes 16 visual tokens" in said
    assert "6 of 4 samples" in said
    assert "photos 4.0" in said  # 24 samples of 6 records
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "run.toml"]
    code, said, _ = run("train", config, "--dry-run", "--json")
    assert json.loads(said)["images"] == 6


def test_what_is_missing_is_said(run: Any, tmp_path: Path) -> None:
    code, _, errors = run("train", "--out", tmp_path / "run")
    assert (code, errors.count("\n")) == (2, 1)
    assert "expected a CONFIG, or --data FOLDER" in errors
    config = tmp_path / "run.toml"
    config.write_text(TINY.format(steps=6))
    code, _, errors = run("train", config)
    assert (code, "expected --out FOLDER" in errors) == (2, True)
    code, _, errors = run("train", config, "--out", tmp_path / "run")
    assert (code, errors.count("\n")) == (2, 1)  # there is no folder "photos"
    assert "photos" in errors


def test_a_log_gets_lines_and_sigterm_ends_with_its_code(photos: Path, tmp_path: Path) -> None:
    """Where stderr is no terminal: what was chosen at the start, then how far the run is."""
    config, out = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(TINY.format(steps=100_000))
    command = [sys.executable, "-m", "isthmus.cli", "train", config, "--out", out]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("Training: "):  # by now somebody listens to signals
                break
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == 143
    assert re.match(r"training in \w+ \(.+\) on the CPU with 1 thread, attention \w+\n", said[0])
    assert re.match(r"Training: [\d,]+ of 100,000, loss [\d.]+, [\d.]+ samples/s, ", said[-1])
    assert "the same command resumes from here" in errors
    assert im.load(out).trained_parameters()


def test_data_check_says_what_is_broken(run: Any, photos: Path) -> None:
    code, said, _ = run("data", "check", photos)
    assert code == 0
    assert "6 of 6" in said
    (photos / "3.png").write_bytes(b"nothing")
    code, said, _ = run("data", "check", photos, "--json")
    assert code == 1
    assert "3.png" in said


def test_features_are_filled_ahead(run: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    command = ("features", photos, "--vision", "tiny-vit", "--out", out, "--json", "--quiet")
    code, said, errors = run(*command)
    assert code == 0, errors
    assert json.loads(said)["computed"] == 6
    assert json.loads(run(*command)[1])["present"] == 6


def test_features_have_regions_where_they_are_asked_for(
    run: Any, photos: Path, tmp_path: Path
) -> None:
    command = ("features", photos, "--vision", "tiny-cnn", "--out", tmp_path, "--regions")
    code, said, errors = run(*command, "--json", "--quiet")
    assert code == 0, errors
    encoder = im.load_vision("tiny-cnn", regions=True)
    assert Path(json.loads(said)["cache"]).name == PatchFeatures(encoder).name
    code, _, errors = run(
        "features", photos, "--vision", "tiny-vit", "--out", tmp_path, "--regions"
    )
    assert code != 0
    assert "regions = true needs" in errors
