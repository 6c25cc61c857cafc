"""What an evaluation asks for, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isthmus.demonstrations.calibrate import METHODS
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.answering import TRIGGER, Style
from isthmus.evaluation.arms import Arm, plan
from isthmus.evaluation.selection import check_selection, to_choose_from
from isthmus.evaluation.task import Task, limited
from isthmus.evaluation.tasks import task_named
from isthmus.prompts.templates import TEMPLATES
from isthmus.reasoning.method import Reasoning


@dataclass(frozen=True)
class Prepared:
    """An evaluation that can be run.

    Attributes:
        tasks: The tasks, with as many items as are asked about.
        arms: What is run.
        left_out: Arms that make no sense, and why.
        style: How questions are put and decoded.
        select: How demonstrations are chosen.
        order: In which order they stand.
    """

    tasks: list[Task]
    arms: list[Arm]
    left_out: dict[str, str]
    style: Style
    select: str
    order: str


def prepared(
    tasks: Sequence[str | Task] | str | Task,
    *,
    shots: Sequence[int] = (0, 4, 8),
    reasoning: str | Reasoning | Sequence[str] = "none",
    samples: int | None = None,
    seeds: Sequence[int] = (0,),
    select: str = "random",
    order: str = "similar-last",
    calibrate: str = "none",
    controls: Sequence[str] = (),
    limit: int | None = None,
    template: str | None = None,
    trigger: str | None = None,
    norm: str = "sum",
    temperature: float | None = None,
    data: str | Path | None = None,
    task_seed: int = 0,
) -> Prepared:
    """Reads the tasks of an evaluation and looks for mistakes in all that it asks for.

    The arguments are those of `evaluate`.

    Raises:
        ConfigError: If something asked for is unknown or impossible.

    Example:
        >>> [arm.id for arm in prepared("parity", shots=[0, 4]).arms]
        ['parity, 0 shots, none, seed 0', 'parity, 4 shots, none, seed 0']
    """
    listed = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    found = [t if isinstance(t, Task) else task_named(t, seed=task_seed, root=data) for t in listed]
    made = [limited(task, limit) for task in found]
    names = [t.name for t in made]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tasks have one name: {', '.join(names)}; evaluate them apart")
    if norm not in ("sum", "token", "byte"):
        raise ConfigError(f'norm is "{norm}": expected sum, token or byte')
    if calibrate not in METHODS:
        raise ConfigError(f'unknown calibration "{calibrate}": {suggestion(calibrate, METHODS)}')
    known = (*TEMPLATES, "chat")
    for name in (template, *(task.template for task in made)):
        if name is not None and name not in known:
            raise ConfigError(f'unknown template "{name}": {suggestion(name, known)}')
    check_selection(select, order)
    how, ways = _ways(reasoning)
    named = {"samples": samples, "temperature": temperature, "trigger": trigger}
    how = replace(how, **{n: v for n, v in named.items() if v is not None})  # type: ignore[arg-type]
    how.trigger_of("")  # an unknown one is said before the model is loaded
    arms, left_out = plan(made, shots, ways, seeds, controls)
    for task in made:
        task.check()
        for arm in arms:
            if (arm.task, arm.reasoning) == (task.name, "cot") and not task.episodic:
                to_choose_from(task, arm)
    style = Style(template, how, norm, calibrate)  # type: ignore[arg-type]
    return Prepared(made, arms, left_out, style, select, order)


def _ways(reasoning: str | Reasoning | Sequence[str]) -> tuple[Reasoning, list[str]]:
    """What all arms have in common of how they reason, and the way of each."""
    if isinstance(reasoning, Reasoning):
        return replace(reasoning, trigger=reasoning.trigger or TRIGGER), [reasoning.way]
    ways = [reasoning] if isinstance(reasoning, str) else list(reasoning)
    return Reasoning(trigger=TRIGGER), ways
