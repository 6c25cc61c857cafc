"""Parts of one's own on the command line: trained, asked and measured by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CODE = '''
from dataclasses import dataclass

from torch import nn

from isthmus.config.base import Config, Count
from isthmus.evaluation.task import Item, Task
from isthmus.prompts.prompt import Example


class Map(nn.Module):
    def __init__(self, in_width, width, tokens):
        super().__init__()
        self.num_tokens, self.width = tokens, width
        self.map = nn.Linear(in_width, tokens * width)

    def forward(self, features):
        return self.map(features.mean(1)).unflatten(1, (self.num_tokens, self.width))


@dataclass(frozen=True, kw_only=True)
class Mean(Config):
    """The mean of all patches."""

    tokens: Count = 3

    def build(self, shape, width, embeddings=None):
        return Map(shape.width, width, self.tokens)


def sums(seed):
    """A task of two sums."""
    items = [Item(str(n), Example((), f"{n} + {seed}?", str(n + seed))) for n in range(2)]
    return Task(name="sums", kind="number", items=items)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Python finds, with a module and the metadata of what offers its parts."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_parts.py").write_text(CODE)
    info = folder / "their_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[isthmus.connectors]\nmean = their_parts:Mean\n[isthmus.tasks]\nsums = their_parts:sums\n"
    )
    return folder


def isthmus(site: Path | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", "isthmus.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose connector is named on the command line."""
    folder = tmp_path_factory.mktemp("run")
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    rows = [{"image": f"{c}.png", "question": "Colour?", "answer": c} for c in ("red", "blue")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(
        "[vision]\nname = 'tiny-vit'\n[language]\nname = 'tiny-lm'\n"
        "[connector]\ntype = 'linear'\n[train]\nsteps = 2\nbatch_size = 2\n"
        "[[data]]\npath = 'data.jsonl'\n"
    )
    ran = isthmus(
        site, "train", folder / "run.toml", "--out", folder / "out", "--quiet",
        "--set", "connector.type=their_parts:Mean", "--set", "connector.tokens=2",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return folder / "out"


def test_a_run_is_asked_with_its_own_connector(site: Path, trained: Path) -> None:
    told = json.loads((trained / "isthmus.json").read_text())["config"]["connector"]
    assert told == {"type": "mean", "tokens": 2}  # the entry point's name, which outlives a move
    image = trained.parent / "red.png"
    ran = isthmus(site, "ask", image, "Colour?", "--model", trained, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["prompt_tokens"] == 2 + len("Question: Colour? Answer:")


def test_without_its_code_one_line_says_what_is_missing(trained: Path) -> None:
    ran = isthmus(None, "ask", trained.parent / "red.png", "Colour?", "--model", trained)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert 'unknown connector "mean"' in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["their_parts:sums", "sums"])
def test_a_task_is_measured_by_name(site: Path, trained: Path, name: str) -> None:
    ran = isthmus(site, "eval", trained, "--tasks", name, "--shots", "0", "--json")
    assert ran.returncode == 0, ran.stderr
    assert [row["arm"]["task"] for row in json.loads(ran.stdout)["rows"]] == ["sums"]


def test_a_task_that_is_none(site: Path, trained: Path) -> None:
    ran = isthmus(site, "eval", trained, "--tasks", "their_parts:absent", "--shots", "0")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert 'cannot import the task "their_parts:absent"' in ran.stderr
