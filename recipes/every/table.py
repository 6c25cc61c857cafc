"""Runs with gated blocks before every n-th layer, beside Flamingo's ablation, as Markdown.

    python recipes/every/table.py RUNS/every-1 RUNS/every-4 RUNS/every-7

Read from each run's folder: `isthmus.json` (how often), `model.safetensors` (trained parameters)
and `log.jsonl` (samples a second, held-out loss). Where a step stands twice in a log, as after a
resume, the later line counts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

# Alayrac et al. 2022 (arXiv 2204.14198v2), table 3: Flamingo-3B in the first row, then row (v),
# "cross-attention frequency". All parameters, frozen ones too; seconds of a step; overall score on
# five benchmarks at 4 shots.
PUBLISHED = (
    ("every", "3.2 B", 1.74, 70.7),
    ("every 2nd", "2.6 B", 1.24, 68.2),
    ("every 4th", "2.3 B", 1.02, 68.8),
    ("one in the middle", "2.0 B", 0.87, 59.8),
)


@dataclass(frozen=True)
class Run:
    """What one run's folder says.

    Attributes:
        every: A block stands before every so many layers.
        blocks: How many blocks.
        parameters: Trained parameters.
        speed: Samples a second, the median over the log without its first line, which has the
            warming up in it.
        step: Step of the last evaluation.
        held_out_loss: Loss on held-out records at that step.
    """

    every: int
    blocks: int
    parameters: int
    speed: float
    step: int
    held_out_loss: float


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, in the order of steps; of two of a kind at one step the later.

    Args:
        path: A run's `log.jsonl`. A last line that was cut off is left out.
    """
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        kind = next((k for k in ("loss", "held_out_loss") if k in line), "")
        if kind:
            lines[line["step"], kind] = line
    return [lines[key] for key in sorted(lines)]


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        SystemExit: If it holds no finished run with an evaluation.
    """
    try:
        described = json.loads((folder / "isthmus.json").read_text(encoding="utf-8"))
        log = read_log(folder / "log.jsonl")
    except OSError as error:
        raise SystemExit(f"{folder} holds no run: {error}") from error
    frozen = tuple(described.get("train", {}).get("freeze", ()))
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        sizes = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    speeds = [line["samples_per_second"] for line in log if "loss" in line]
    evaluations = [line for line in log if "held_out_loss" in line]
    if not speeds or not evaluations:
        raise SystemExit(f"{folder}/log.jsonl has no evaluation: set train.evaluate_every")
    return Run(
        every=described["config"]["fusion"]["every"],
        blocks=len({name.split(".")[2] for name in sizes if name.startswith("fusion.blocks.")}),
        parameters=sum(size for name, size in sizes.items() if not name.startswith(frozen)),
        speed=statistics.median(speeds[1:] or speeds),
        step=evaluations[-1]["step"],
        held_out_loss=evaluations[-1]["held_out_loss"],
    )


def table(runs: Sequence[Run]) -> str:
    """Two Markdown tables: ours, and Flamingo's.

    Args:
        runs: The first is what the others' speed is compared with.
    """
    first = runs[0]
    lines = [
        "| blocks before | blocks | trained | samples/s | speed | held-out loss | at step |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        name = "every layer" if run.every == 1 else f"every {run.every}th"
        lines.append(
            f"| {name} | {run.blocks} | {run.parameters / 1e6:.1f} M | {run.speed:.1f} "
            f"| {run.speed / first.speed:.2f}x | {run.held_out_loss:.3f} | {run.step} |"
        )
    lines += [
        "",
        "Flamingo-3B (Alayrac et al. 2022, table 3, row v):",
        "",
        "| blocks before | parameters | step | speed | overall score |",
        "|---|---|---|---|---|",
    ]
    slowest = PUBLISHED[0][2]
    for name, size, seconds, score in PUBLISHED:
        speed = slowest / seconds
        lines.append(f"| {name} | {size} | {seconds:.2f} s | {speed:.2f}x | {score} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    print(table([read_run(folder) for folder in parser.parse_args().runs]))


if __name__ == "__main__":
    main()
