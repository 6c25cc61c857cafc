"""A model's card: every evaluation of a configuration file, a table of all and their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from isthmus.config.evaluation import SuiteConfig
from isthmus.evaluation.arms import plan
from isthmus.evaluation.card import card
from isthmus.evaluation.pictures import picture
from isthmus.evaluation.results import Results
from isthmus.evaluation.runner import evaluate
from isthmus.evaluation.task import limited
from isthmus.evaluation.tasks import task_named
from isthmus.files import write_text
from isthmus.generation.engine import Engine
from isthmus.model.checkpoint import load_vlm
from isthmus.model.vlm import VisionLanguageModel

CARD = "card.md"


def evaluate_suite(
    model: str | Path | VisionLanguageModel | Engine,
    suite: SuiteConfig,
    *,
    data: str | Path | None = None,
    out: str | Path,
    limit: int | None = None,
    command: str = "",
    quiet: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> dict[str, Results]:
    """Measures a model in every run of a configuration, each resumable in a folder of its own.

    Args:
        model: As for `evaluate`.
        suite: What `config.evaluation.read_suite` reads from a file.
        data: What the paths of tasks are relative to.
        out: Folder for the card, its pictures, and a folder for each run.
        limit: Most questions of each task, where a run has no lower limit.
        command: What is said above the card, to run it again.
        quiet: Show no progress bar.
        device: As for `evaluate`.
        dtype: As for `evaluate`.

    Returns:
        Results by the names of their runs.

    Raises:
        ConfigError: As for `evaluate`; a task that cannot be read is found before anything is run.
        CheckpointError: If the model cannot be loaded.
    """
    folder = Path(out)
    for run in suite.run:
        tasks = [
            limited(task_named(task, seed=run.task_seed, root=data), run.limit)
            for task in run.tasks
        ]
        plan(tasks, run.shots, run.reasoning, range(run.seeds), run.controls)
    engine = model
    if isinstance(model, (str, Path)):
        engine = Engine(load_vlm(model, device=device, dtype=dtype))
    elif isinstance(model, VisionLanguageModel):
        engine = Engine(model)
    results: dict[str, Results] = {}
    for run in suite.run:
        limits = [own for own in (run.limit, limit) if own is not None]
        results[run.name] = evaluate(
            engine,
            run.tasks,
            shots=run.shots,
            reasoning=run.reasoning,
            samples=run.samples,
            temperature=run.temperature,
            seeds=range(run.seeds),
            select=run.select,
            order=run.order,
            calibrate=run.calibrate,
            controls=run.controls,
            limit=min(limits, default=None),
            template=run.template,
            trigger=run.trigger,
            norm=run.norm,
            data=data,
            task_seed=run.task_seed,
            name=str(model) if isinstance(model, (str, Path)) else None,
            out=folder / run.name,
            quiet=quiet,
        )
        _write(suite, results, folder, command)
    return results


def _write(suite: SuiteConfig, results: dict[str, Results], folder: Path, command: str) -> None:
    """Writes the card and the pictures of what has been run so far."""
    ready = [own for own in suite.picture if all(name in results for name in own.runs)]
    for own in ready:
        write_text(folder / f"{own.name}.svg", picture(own, results))
    shown = replace(suite, picture=tuple(ready))
    write_text(folder / CARD, card(shown, results, command))
