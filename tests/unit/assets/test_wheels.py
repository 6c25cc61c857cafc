"""Progress on a terminal. How wheels are had is tested through `fetch`, in test_assets.py."""

from __future__ import annotations

import io
import sys

import pytest

from isthmus.assets import wheels


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_even_while_a_library_is_hushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, hushed = Terminal(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with wheels.progress("fake: downloading", 10) as report:
            report(15)  # pip holds two copies for a moment
        with wheels.progress("fake: converting"):
            patch.setattr(sys, "stderr", hushed)
    drawn = terminal.getvalue()
    assert "fake: downloading" in drawn
    assert "10/10 bytes" in drawn
    assert "fake: converting" in drawn
    assert hushed.getvalue() == ""


def test_progress_is_silent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        with wheels.progress("fake: downloading", 10) as report:
            report(5)
    assert pipe.getvalue() == ""
