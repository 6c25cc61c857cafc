"""A run's log: one JSON object a line, and the same numbers for TensorBoard.

    {"step": 20, "loss": 2.31, "losses": {"pairs": 2.1}, "norm": 1.2, "lr": 0.001, "samples": 64,
     "tokens": 400, "samples_per_second": 30.1, "tokens_per_second": 190.0,
     "gates": {"15": {"attention": 0.46, "ffw": 0.47}}}            a step; gates after tanh
    {"step": 500, "evaluation": {"pairs": 2.0}, "held_out_loss": 2.0}
    {"step": 500, "answers": [{"images": [...], "question": ..., "answer": ..., "expected": ...}]}
    {"step": 37, "broken": [{"image": "a.jpg", "why": "..."}]}

A run that goes on repeats the steps after its last checkpoint: the later line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
BOARD = "tensorboard"


class RunLog:
    """Appends to a run's log.

    Args:
        folder: The run's folder; made if missing.
        step: Steps done before, so that TensorBoard forgets what comes again.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        if path.is_file():
            _cut_half_line(path)
        # An image's name need not be UTF-8: what is not is written as JSON's escape of it
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # of the extra "train"; the log itself does without
            return
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1 if step else None)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds a line; a number that is none (NaN, infinity) becomes null."""
        self._file.write(json.dumps(_finite(entry), ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _scalars(entry):
                self._board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _cut_half_line(path: Path) -> None:
    """Removes what a process that was killed had begun to write."""
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """A value with null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _scalars(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a line, named as TensorBoard groups them."""
    found: list[tuple[str, float]] = []
    for key, value in entry.items():
        if key == "step":
            continue
        if key == "gates":
            for layer, own in value.items():
                found += [(f"gates/{layer}-{name}", number) for name, number in own.items()]
        elif isinstance(value, Mapping):
            found += [(f"{key}/{name}", number) for name, number in value.items()]
        elif isinstance(value, int | float):
            found.append((f"train/{key}", value))
    return found


def read_log(folder: Path) -> list[dict[str, Any]]:
    """A run's log; of lines of one kind and step the last one counts.

    Args:
        folder: The run's folder.

    Returns:
        The lines in the order of their steps; none if there is no log.
    """
    path = folder / LOG
    if not path.is_file():
        return []
    kept: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # the last one may be half
        entry = json.loads(line)
        kind = next((k for k in ("loss", "evaluation", "answers", "broken") if k in entry), "")
        kept[entry["step"], kind] = entry
    return [kept[key] for key in sorted(kept)]
