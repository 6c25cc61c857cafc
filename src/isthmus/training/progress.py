"""How fast a run is, and the bar that shows it."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

WINDOW = 50
"""Steps that rates are taken over: long enough to be calm, short enough to show a change."""


class ProgressBar:
    """Loss, samples and tokens a second, time gone and left, on stderr.

    Args:
        total: Steps of the run.
        done: Steps done before.
        quiet: Show nothing; rates are kept all the same.
    """

    def __init__(self, total: int, done: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[samples]} samples/s"),
            TextColumn("{task.fields[tokens]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "Training", total=total, completed=done, loss="-", samples="-", tokens="-"
        )
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=WINDOW + 1)
        self._recent.append((monotonic(), 0, 0))

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, samples: int, tokens: int) -> None:
        """After a step: its number, loss, samples and learned tokens."""
        self._recent.append((monotonic(), samples, tokens))
        rates = self.rates()
        shown: dict[str, Any] = {
            "loss": f"{loss:.3f}",
            "samples": f"{rates['samples_per_second']:.1f}",
            "tokens": f"{rates['tokens_per_second']:.0f}",
        }
        self._bar.update(self._task, completed=step, **shown)

    def rates(self) -> dict[str, float]:
        """Samples and learned tokens a second, over the last steps."""
        seconds = self._recent[-1][0] - self._recent[0][0]
        if seconds <= 0:
            return {"samples_per_second": 0.0, "tokens_per_second": 0.0}
        later = list(self._recent)[1:]
        return {
            "samples_per_second": round(sum(s for _, s, _ in later) / seconds, 1),
            "tokens_per_second": round(sum(t for _, _, t in later) / seconds, 1),
        }
