"""`isthmus assets`, with a cache that holds one of two fake assets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from isthmus.assets import registry as assets
from isthmus.cli import main
from isthmus.errors import AssetError


@pytest.fixture(autouse=True)
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were fetched; "here" is in the cache from the start."""
    names: list[str] = []
    some = next(iter(assets.ASSETS.values()))
    fakes = {name: replace(some, name=name, size_mb=7.0) for name in ("here", "absent")}
    monkeypatch.setattr(assets, "ASSETS", fakes)
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")

    def fetch(name: str) -> Path:
        names.append(name)
        return tmp_path / name

    monkeypatch.setattr(assets, "fetch_asset", fetch)
    monkeypatch.setattr(
        assets, "cached", lambda name: tmp_path if name in {"here", *names} else None
    )
    return names


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["isthmus", "assets", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_list_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["here"] == ["here", "0.1.0", "Apache-2.0", "7", "MB", "yes"]
    assert rows["absent"][-1] == "no"
    assert str(tmp_path) in lines[-1]
    assert max(map(len, lines[:-1])) <= 80


def test_the_list_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["cached"], r["size_mb"]) for r in rows] == [
        ("here", True, 7.0),
        ("absent", False, 7.0),
    ]
    assert all(len(r["sha256"]) == 64 and r["file"].endswith(".whl") for r in rows)


def test_fetch_prints_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "fetch", "absent") == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "absent")]


def test_fetch_all_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fetched: list[str]
) -> None:
    assert run(monkeypatch, "fetch", "--all", "--json") == 0
    assert fetched == ["here", "absent"]
    assert [r["cached"] for r in json.loads(capsys.readouterr().out)] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "expected names or --all, got neither"),
        (["fetch", "here", "--all"], "expected names or --all, got both"),
        (["fetch", "here", "absnt"], 'did you mean "absent"'),
        (["--all"], "isthmus assets fetch --all"),
        (["list", "here"], "isthmus assets fetch here"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fetched: list[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert fetched == []


def test_a_failed_fetch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> Path:
        raise AssetError(f"{name}: no network")

    monkeypatch.setattr(assets, "fetch_asset", fail)
    assert run(monkeypatch, "fetch", "absent") == 2
    assert capsys.readouterr().err == "error: absent: no network\n"
