"""Progress: what a log gets, and when."""

from __future__ import annotations

import io
import re
import threading

import pytest

from isthmus.reports import progress as module
from isthmus.reports.progress import EVERY, FIRST, Progress, Rates, tracked


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_soon_and_then_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("Training", 600, unit="samples", stream=stream, clock=clock) as progress:
        when = []
        for step in range(1, 121):
            clock.now = float(step)
            progress.advance(amount=4, loss=f"{step / 10:.1f}")
            when += [step] * (len(lines(stream)) - len(when))
        assert when == [int(FIRST), int(FIRST + EVERY), int(FIRST + 2 * EVERY), 93]
    assert lines(stream)[0] == (
        "Training: 3 of 600, loss 0.3, 4.0 samples/s, 0:00:03 elapsed, 0:09:57 left"
    )
    assert lines(stream)[-1].startswith("Training: 120 of 600, loss 12.0")  # how it ended


def test_a_step_that_takes_minutes_does_not_silence_a_log(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks at the clock while the work itself says nothing."""
    seen, stream = threading.Event(), io.StringIO()
    with Progress("Training", 9, stream=stream, clock=clock) as progress:
        assert progress._watch is not None
        monkeypatch.setattr(progress, "tick", seen.set)
        clock.now = 100.0
        assert seen.wait(60)
        watch = progress._watch
    assert not watch.is_alive()
    Progress.tick(progress)
    assert lines(stream) == ["Training: 0 of 9, 0:01:40 elapsed"]


def test_short_or_quiet_work_says_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("Features", 2, stream=stream, clock=clock) as progress:
        clock.now = FIRST - 0.1
        progress.advance(2)
    with Progress("Features", 2, quiet=True, stream=stream, clock=clock) as progress:
        clock.now = 1000.0
        progress.advance(2)
    assert stream.getvalue() == ""


def test_work_done_before_counts_as_done_and_not_for_the_time_left(clock: Clock) -> None:
    progress = Progress("Evaluating", 100, done=40, stream=io.StringIO(), clock=clock)
    progress.skip(40)
    clock.now = 10.0
    progress.advance(10)
    assert progress.line() == "Evaluating: 90 of 100, 0:00:10 elapsed, 0:00:10 left"
    progress.say("10 shots")
    assert progress.line().startswith("10 shots: 90 of 100")


def test_nobody_knows_how_much_there_is(clock: Clock) -> None:
    progress = Progress("Features", unit="images", stream=io.StringIO(), clock=clock)
    clock.now = 2.0
    progress.advance(1000)
    assert progress.line() == "Features: 1,000, 500.0 images/s, 0:00:02 elapsed"


def test_a_terminal_gets_a_bar(clock: Clock) -> None:
    stream = Terminal()
    with Progress("Training", 4, stream=stream, clock=clock) as progress:
        clock.now = 100.0
        progress.advance(4, loss="0.500")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "Training" in shown
    assert "loss 0.500" in shown
    assert "elapsed" not in shown


def test_a_failure_prints_no_last_line(clock: Clock) -> None:
    stream = io.StringIO()

    def fail(progress: Progress) -> None:
        with progress:
            clock.now = 5.0
            progress.advance()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail(Progress("Training", 4, stream=stream, clock=clock))
    assert len(lines(stream)) == 1


def test_tracked_items_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(5), "Checking")) == [0, 1, 2, 3, 4]
    assert list(tracked(iter("ab"), "Checking", quiet=True)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_rates_are_of_the_last_updates(clock: Clock) -> None:
    rates = Rates(clock)
    assert rates.per_second("samples") == 0.0
    for step in range(100):
        clock.now += 1.0
        rates.add(samples=8 if step < 100 - module.WINDOW else 16, tokens=100)
    assert rates.per_second("samples") == 16.0
    assert rates.per_second("tokens") == 100.0
