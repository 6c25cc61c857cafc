"""The bar that shows how an evaluation goes on."""

from __future__ import annotations


class EvaluationBar:
    """Questions answered, how many a second, time gone and left, on stderr.

    Args:
        total: Questions of all arms.
        quiet: Show nothing.
    """

    def __init__(self, total: int, *, quiet: bool) -> None:
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
            TextColumn("{task.fields[arm]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} questions/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, arm="", rate="-")

    def __enter__(self) -> EvaluationBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, arm: str) -> None:
        """An arm begins."""
        self._bar.update(self._task, arm=arm)

    def skip(self, questions: int) -> None:
        """Questions that an earlier run has answered: left out of the rate."""
        task = self._bar.tasks[self._task]
        if questions and task.total is not None:
            self._bar.update(self._task, total=task.total - questions)

    def advance(self, questions: int) -> None:
        """Questions have been answered."""
        self._bar.advance(self._task, questions)
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, rate=f"{speed:.1f}" if speed else "-")
