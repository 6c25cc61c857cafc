"""`isthmus chat`: the shell, and bad input in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.cli import main

SRC = Path(im.__file__).parent.parent


def test_the_shell_answers_what_is_piped_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    command = [sys.executable, "-m", "isthmus.cli", "chat", "--terminal"]
    command.append(str(im.save(model, tmp_path / "mine")))
    ended = subprocess.run(
        command,
        input="/image nowhere.png\nWhat?\n",
        env={**os.environ, "PYTHONPATH": str(SRC), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=True,
    )
    assert ended.stdout.strip()
    assert ended.stderr == "error: no file at nowhere.png: check the path\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--terminal", "--language", "fr"], 'unknown --language "fr"'),
        (["--terminal", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["isthmus", "chat", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert what in told.err
    assert len(told.err.splitlines()) == 1


def test_strangers_need_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    monkeypatch.delenv("ISTHMUS_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "argv", ["isthmus", "chat", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "set a password" in capsys.readouterr().err
