"""How far long work has come: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TextIO, TypeVar

FIRST = 3.0
"""Seconds until the first line where there is no terminal; shorter work prints none."""
EVERY = 30.0
"""Most seconds between two lines."""
WINDOW = 50
"""Updates that rates are taken over: long enough to be calm, short enough to show a change."""

T = TypeVar("T")


class Rates:
    """How much is done in a second, over the last updates.

    Args:
        clock: Seconds, as `time.monotonic` gives them.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, dict[str, float]]] = deque([(clock(), {})], WINDOW + 1)

    def add(self, **counts: float) -> None:
        """After a piece of work: how much of each kind it was."""
        self._recent.append((self._clock(), counts))

    def per_second(self, kind: str) -> float:
        """How much of a kind is done in a second; 0 before the first update."""
        seconds = self._recent[-1][0] - self._recent[0][0]
        if seconds <= 0:
            return 0.0
        return sum(counts.get(kind, 0.0) for _, counts in list(self._recent)[1:]) / seconds


class Progress:
    """Shows on stderr how far work has come, while it is used as a context.

    A terminal shows a bar. A log gets a line after a few seconds and then every half minute, also
    while a single step takes longer than that.

    Args:
        what: What is done: "Training".
        total: How much there is to do; None where nobody knows.
        done: How much was done before.
        unit: What the rate counts: "samples" is shown as samples/s; "" shows no rate.
        quiet: Show nothing.
        stream: Where lines go in place of stderr.
        clock: Seconds, as `time.monotonic` gives them.

    Example:
        >>> import io
        >>> with Progress("Training", total=2, stream=io.StringIO()) as progress:
        ...     progress.advance(loss="1.250")
        ...     print(progress.line())
        Training: 1 of 2, loss 1.250, 0:00:00 elapsed, 0:00:00 left
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._began, self._skipped = clock, clock(), done
        self._rates = Rates(clock)
        self._shown: dict[str, str] = {}
        self._next = self._began + FIRST
        self._printed = False
        terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar = _bar(self._stream) if terminal and not quiet else None
        self._task = None if self._bar is None else self._bar.add_task(what, total=total, more="")
        self._lines = not terminal and not quiet
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        elif self._lines:
            self._watch = threading.Thread(target=self._keep_printing, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
        if self._bar is not None:
            self._bar.stop()
        elif self._printed and kind is None:
            print(self.line(), file=self._stream, flush=True)

    def say(self, what: str) -> None:
        """Changes what is said to be done."""
        self.what = what
        self._show()

    def skip(self, count: int) -> None:
        """Work that an earlier run has done: it counts as done, and not for the rate."""
        self.done += count
        self._skipped += count
        self._show()

    def advance(self, count: int = 1, amount: float | None = None, **shown: str) -> None:
        """More has been done.

        Args:
            count: How much of the total.
            amount: How much of `unit`, where that is something else than `count`.
            shown: More to show, such as the loss.
        """
        self.done += count
        self._rates.add(done=count, unit=count if amount is None else amount)
        self._shown |= shown
        self._show()
        self.tick()

    def per_second(self) -> float:
        """How much of `unit` is done in a second, over the last updates."""
        return self._rates.per_second("unit")

    def tick(self) -> None:
        """Prints a line if one is due and there is no terminal."""
        now = self._clock()
        if self._lines and now >= self._next:
            self._next, self._printed = now + EVERY, True
            print(self.line(), file=self._stream, flush=True)

    def line(self) -> str:
        """What a log gets."""
        elapsed = self._clock() - self._began
        of = f"{self.done:,}" + ("" if self.total is None else f" of {self.total:,}")
        parts = [of, *self._more(), f"{clock(elapsed)} elapsed"]
        new = self.done - self._skipped
        if self.total is not None and new > 0:
            left = max(0, self.total - self.done)
            recent = self._rates.per_second("done")
            parts.append(f"{clock(left / recent if recent else elapsed / new * left)} left")
        return f"{self.what}: {', '.join(parts)}"

    def _more(self) -> list[str]:
        more = [f"{name} {value}" for name, value in self._shown.items()]
        if self.unit and (rate := self.per_second()):
            more.append(f"{rate:.1f} {self.unit}/s")
        return more

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            more = "  ".join(self._more())
            self._bar.update(self._task, description=self.what, completed=self.done, more=more)

    def _keep_printing(self) -> None:
        """Looks at the clock every second: a step may take longer than `EVERY`."""
        while not self._ended.wait(1.0):
            self.tick()


def tracked(
    items: Iterable[T], what: str, total: int | None = None, *, quiet: bool = False
) -> Iterator[T]:
    """Items one by one, while progress is shown.

    Args:
        items: Any iterable.
        what: What is done with them.
        total: How many there are; None asks `items` for its length.
        quiet: Show nothing.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(what, total, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> clock(3723)
        '1:02:03'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=stream),
    )
