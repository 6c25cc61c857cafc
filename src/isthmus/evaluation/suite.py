"""A model's card: every evaluation of a configuration file, a table of all and their pictures."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from isthmus.config.evaluation import EvaluationConfig, SuiteConfig
from isthmus.errors import ConfigError
from isthmus.evaluation.card import card
from isthmus.evaluation.pictures import Plan, check_picture, picture
from isthmus.evaluation.preparation import prepared
from isthmus.evaluation.results import Results
from isthmus.evaluation.runner import evaluate
from isthmus.files import write_text
from isthmus.generation.engine import Engine
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel, load_answering

CARD = "card.md"


def evaluate_suite(
    model: str | Path | VisionLanguageModel | WholeModel | Engine,
    suite: SuiteConfig,
    *,
    data: str | Path | None = None,
    out: str | Path,
    limit: int | None = None,
    command: str = "",
    quiet: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    engine: str = "torch",
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
        engine: As for `evaluate`.

    Returns:
        Results by the names of their runs.

    Raises:
        ConfigError: As for `evaluate`. Mistakes in any run or picture are found before anything
            is run.
        CheckpointError: If the model cannot be loaded.
    """
    folder = Path(out)
    suite = replace(suite, run=tuple(_cut(run, limit) for run in suite.run))
    plans = {}
    for run in suite.run:
        try:
            asked = prepared(run.tasks, **_options(run), data=data)
        except ConfigError as error:
            raise ConfigError(f'the run "{run.name}": {error}') from error
        names = tuple(task.name for task in asked.tasks)
        plans[run.name] = Plan(names, tuple(asked.arms), run.samples)
    for shown in suite.picture:
        check_picture(shown, [plans[name] for name in shown.runs])
    runs = model
    if isinstance(model, (str, Path)):
        runs = Engine(load_answering(model, device=device, dtype=dtype, engine=engine))
    elif isinstance(model, VisionLanguageModel | WholeModel):
        runs = Engine(model)
    results: dict[str, Results] = {}
    for run in suite.run:
        results[run.name] = evaluate(
            runs,
            run.tasks,
            **_options(run),
            data=data,
            name=str(model) if isinstance(model, (str, Path)) else None,
            out=folder / run.name,
            quiet=quiet,
        )
        _write(suite, results, folder, command)
    return results


def _cut(run: EvaluationConfig, limit: int | None) -> EvaluationConfig:
    """The run with the lower of both limits."""
    limits = [own for own in (run.limit, limit) if own is not None]
    return replace(run, limit=min(limits, default=None))


def _options(run: EvaluationConfig) -> dict[str, Any]:
    """What `evaluate` is asked for."""
    unsaid = ("name", "about", "groups", "tasks", "seeds")
    own = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in unsaid}
    return {**own, "seeds": range(run.seeds)}


def _write(suite: SuiteConfig, results: dict[str, Results], folder: Path, command: str) -> None:
    """Writes the card and the pictures of what has been run so far."""
    ready = [own for own in suite.picture if all(name in results for name in own.runs)]
    for own in ready:
        write_text(folder / f"{own.name}.svg", picture(own, results))
    shown = replace(suite, picture=tuple(ready))
    write_text(folder / CARD, card(shown, results, command))
