"""`isthmus eval` from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import isthmus as im
from isthmus.cli import main
from isthmus.cli.eval import named_in_card as named
from isthmus.evaluation.records import read


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isthmus", "eval", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    joined = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))
    return im.save(joined, tmp_path / "model")


def test_a_table_and_a_report(run: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--tasks", "parity,counting", "--shots", "0,2", "--limit", 3, "--seeds", 2)
    code, printed, err = run(model, *asked, "--out", out)
    assert (code, err) == (0, "")
    assert printed.count("| 0 | none |") == 4
    assert printed.strip().endswith(f"report: {out / 'report.html'}")
    assert (out / "report.html").is_file()
    code, printed, _ = run(model, *asked, "--out", out, "--json")
    assert code == 0
    found = json.loads(printed)
    assert found == json.loads((out / "results.json").read_text())
    assert [r["n"] for r in found["rows"]] == [3] * 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "countin"], 'did you mean "counting"'),
        ([], "expected --tasks"),
        (["--tasks", "parity", "--shots", "a"], '"a" is not a number'),
        (["--tasks", "parity", "--shots", ","], "expected numbers with commas"),
        (["--tasks", "no/such.jsonl"], "cannot read questions"),
        (["--tasks", "parity", "--reasoning", "think"], "unknown way to reason"),
        (["nothing", "--tasks", "parity"], 'no model "nothing"'),
    ],
)
def test_bad_input_is_one_line(run: Any, arguments: list[str], told: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert told in err


def test_the_list_names_everything(run: Any) -> None:
    code, printed, _ = run("--list", "--json")
    assert code == 0
    found = json.loads(printed)
    assert {"counting", "gsm8k:PATH"} <= found["tasks"].keys()
    assert "cot" in found["reasoning"]
    assert run("--list")[0] == 0


def test_a_killed_run_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isthmus.cli", "eval", str(model), "--tasks", "parity"]
    command += ["--shots", "0,1,2", "--limit", "24", "--threads", "1", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while running.poll() is None and len(_lines(out)) < 24:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = _lines(out)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = _lines(out)
    whole = before[: len(before) - 1]  # the last may have been cut short
    assert after[: len(whole)] == whole
    keys = [(r.arm, r.item) for r in read(out / "records.jsonl")]
    assert len(keys) == len(set(keys)) == 3 * 24


def _lines(out: Path) -> list[str]:
    file = out / "records.jsonl"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


SUITE = """
[[run]]
name = "odd"
tasks = ["parity"]
shots = [0, 2]
limit = 3
"""


def test_a_file_of_evaluations_makes_a_card(run: Any, model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "card.toml", tmp_path / "out"
    file.write_text(SUITE)
    code, printed, err = run(model, "--config", file, "--out", out, "--limit", 2, "--quiet")
    assert (code, err) == (0, "")
    assert printed.strip().endswith(f"card: {out / 'card.md'}")
    assert "`isthmus eval MODEL --config card.toml --limit 2 --out OUT`" in printed
    assert f"<h1>{model}</h1>" in (out / "odd" / "report.html").read_text()
    code, printed, _ = run(model, "--config", file, "--out", out, "--limit", 2, "--json")
    assert [row["n"] for row in json.loads(printed)["odd"]["rows"]] == [2, 2]


def test_the_card_says_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("recipes") / "card.toml"
    assert named(own) == named(tmp_path / own) == named(Path("..") / tmp_path.name / own)
    assert named(own) == "recipes/card.toml"
    assert named(tmp_path.parent / "card.toml") == named(Path("..") / "card.toml") == "card.toml"


def test_what_the_file_says_is_not_said_again(run: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "card.toml"
    file.write_text(SUITE)
    code, _, err = run(model, "--config", file, "--out", tmp_path / "out", "--shots", "4")
    assert (code, "expected shots in the file alone" in err) == (2, True)
    code, _, err = run(model, "--config", file)
    assert (code, "--config expects --out FOLDER" in err) == (2, True)
