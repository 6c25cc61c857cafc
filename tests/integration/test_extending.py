"""docs/extending.md: each change is new files alone, and what the page shows of it happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus

ROOT = Path(__file__).parents[2]
PACKAGE = Path(isthmus.__file__).parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## A (connector|fusion|medium|task|command)\n(.*?)(?=^## )", PAGE, re.M | re.S)
)


def blocks(section: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def new_file(diff: str) -> tuple[str, str]:
    """Path and text of the one new file that a diff brings.

    Raises:
        AssertionError: If it changes another file, or its header is not true.
    """
    heads = [line for line in diff.splitlines() if line.startswith(("--- ", "+++ "))]
    assert heads[:1] == ["--- /dev/null"]
    assert len(heads) == 2
    lines = diff.splitlines()[3:]
    assert diff.splitlines()[2] == f"@@ -0,0 +1,{len(lines)} @@"
    assert all(line.startswith("+") for line in lines)
    return heads[1].removeprefix("+++ b/"), "".join(f"{line[1:]}\n" for line in lines)


@pytest.fixture
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the package with a section's file in it; beside it an image."""
    left_out = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(PACKAGE, tmp_path / "src" / "isthmus", ignore=left_out)
    diffs = blocks(SECTIONS[request.param], "diff")
    assert len(diffs) == (2 if request.param == "medium" else 1)
    for path, text in map(new_file, diffs):
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "examples" / "coffee.jpg", tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> str:
    """What a command prints, errors included; the package is the one in the folder."""
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("extended", ["connector", "fusion", "medium", "task"], indirect=True)
def test_a_new_file_is_a_new_part(extended: Path, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["extended"]
    (code,) = blocks(SECTIONS[kind], "python")
    where = "\nimport isthmus; print(isthmus.__file__)"
    assert run(extended, "-c", code + where).strip() == str(extended / "src/isthmus/__init__.py")
    name = {"connector": "rows", "fusion": "normed", "medium": "sound", "task": "palindromes"}[kind]
    listing = ("eval", "--list") if kind == "task" else ("list",)
    assert name in run(extended, "-m", "isthmus.cli", *listing)
    if kind == "medium":
        report = json.loads(run(extended, "-m", "isthmus.cli", "data", "check", "tones", "--json"))
        assert report["others"] == {"sound": 24}
        assert report["usable"] == 24
        shutil.copy(extended / "tones" / "low" / "0.wav", extended / "whole.wav")
        (extended / "tones" / "low" / "0.wav").write_bytes(b"RIFF")
        report = json.loads(run(extended, "-m", "isthmus.cli", "data", "check", "tones", "--json"))
        assert report["usable"] == 23
        asked = run(extended, "-m", "isthmus.cli", "ask", "--model", "run", "whole.wav", "")
        assert asked.strip().endswith("low")


@pytest.mark.parametrize("extended", ["command"], indirect=True)
def test_a_new_file_is_a_new_command(extended: Path) -> None:
    (shown,) = blocks(SECTIONS["command"], "console")
    expected = re.findall(r"^\$ isthmus (.*)\n(.*)$", shown, re.M)
    assert len(expected) == 2
    for arguments, output in expected:
        assert run(extended, "-m", "isthmus.cli", *arguments.split()).startswith(output)
    assert "width and height" in run(extended, "-m", "isthmus.cli", "--help")
