"""Pictures of results: accuracy over demonstrations, and over ways to answer. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.config.evaluation import PictureConfig
from isthmus.errors import ConfigError
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.results import Results, Row
from isthmus.reports.charts import Line
from isthmus.reports.figures import Bar, bars, curves

WAYS = {
    "none": "at once",
    "cot": "worked examples",
    "zero-cot": "trigger alone",
    "auto-cot": "Auto-CoT",
    "least-to-most": "least to most",
}
CONTROLS = {
    "blank": "blank image",
    "blank-shots": "blank examples",
    "shuffled": "shuffled labels",
    "filler": "dots for steps",
    "answer-first": "answer first",
}
RIGHT = "right labels"
CHANCE = "chance"
NOTHING = "every arm was left out"


def said(arm: Arm, samples: int = 1) -> str:
    """What an arm is called.

    Args:
        arm: The arm.
        samples: Answers that were drawn for each question.

    Example:
        >>> said(Arm("counting", 3, "cot"), 9)
        'self-consistency (3)'
    """
    way = WAYS[arm.reasoning]
    if arm.control in ("filler", "answer-first"):
        way = CONTROLS[arm.control]
    shots = f" ({arm.shots})" if arm.shots else ""
    votes = f", {samples} votes" if samples > 1 else ""
    if votes and way == WAYS["cot"]:  # its published form
        way, votes = "self-consistency", ""
    rest = CONTROLS[arm.control] if arm.control and way != CONTROLS[arm.control] else ""
    return f"{way}{shots}{votes}{', ' * bool(rest)}{rest}"


@dataclass(frozen=True)
class Plan:
    """What a picture can show of a run.

    Attributes:
        tasks: The names of its tasks.
        arms: Its arms.
        samples: Answers drawn for each question.
    """

    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    samples: int = 1


def check_picture(config: PictureConfig, plans: Sequence[Plan]) -> None:
    """Refuses a picture that would leave out or mix up results.

    Args:
        config: What it shows.
        plans: Its runs, in order.

    Raises:
        ConfigError: If there are not as many labels as panels or two of one name, if bars are of
            several tasks, or if two runs have an arm of one name.
    """
    tasks = list(dict.fromkeys(task for own in plans for task in own.tasks))
    where = f'the picture "{config.name}"'
    if config.kind == "ways":
        if len(tasks) > 1:
            raise ConfigError(
                f'{where} of the kind "ways" has {len(tasks)} tasks ({", ".join(tasks)}): expected '
                "one, since a bar is named by the way alone; make a picture for each"
            )
        if config.labels:
            raise ConfigError(
                f'{where} of the kind "ways" has labels: expected none, since they are of panels'
            )
    elif config.labels and len(config.labels) != len(tasks):
        raise ConfigError(
            f"{where} has {len(config.labels)} labels for {len(tasks)} tasks "
            f"({', '.join(tasks)}): expected one each, or none"
        )
    twice = [label for label in config.labels if config.labels.count(label) > 1]
    if twice:
        raise ConfigError(f'{where} has the label "{twice[0]}" twice: expected different ones')
    seen = set[tuple[str, str]]()
    for own in plans:
        samples = own.samples if config.kind == "ways" else 1
        names = {(arm.task, said(arm, samples)) for arm in own.arms}
        if both := sorted(seen & names):
            raise ConfigError(
                f'{where} has "{both[0][1]}" of {both[0][0]} from two runs: expected each arm from '
                "one; make a picture for each"
            )
        seen |= names


def picture(config: PictureConfig, results: Mapping[str, Results]) -> str:
    """A picture as SVG.

    Args:
        config: What it shows.
        results: Results by the names of their runs, those of `config.runs` among them.

    Raises:
        ConfigError: As for `check_picture`.
    """
    shown = [results[name] for name in config.runs]
    check_picture(config, [_planned(own) for own in shown])
    return _shots(config, shown) if config.kind == "shots" else _ways(config, shown)


def _shots(config: PictureConfig, shown: Sequence[Results]) -> str:
    """A panel for each task: a line for each way and control, and chance."""
    rows = [row for results in shown for row in results.rows]
    tasks = list(dict.fromkeys(task for results in shown for task in _planned(results).tasks))
    labels = config.labels or tuple(tasks)
    one_way = len({row.arm.reasoning for row in rows}) == 1
    panels = {}
    for task, label in zip(tasks, labels, strict=True):
        lines: dict[str, list[Row]] = {}
        own = [row for row in rows if row.arm.task == task]
        if not own:  # all of its arms were left out
            continue
        for row in own:
            control = CONTROLS.get(row.arm.control, RIGHT)
            way = "" if one_way else WAYS[row.arm.reasoning]
            lines.setdefault(", ".join(t for t in (way, control) if t), []).append(row)
        low, high = min(r.arm.shots for r in own), max(r.arm.shots for r in own)
        panel = {name: _line(of_line) for name, of_line in lines.items()}
        if own[0].chance:
            level = own[0].chance
            panel[CHANCE] = Line([(low, level), (max(high, low + 1), level)], thin=True)
        panels[label] = panel
    below = "demonstrations" if panels else NOTHING
    return curves(config.title, panels, below=below, width=config.width)


def _planned(results: Results) -> Plan:
    """What was run; a task that no arm is left of is still one of its tasks."""
    arms = tuple(row.arm for row in results.rows)
    tasks = results.config.get("tasks") or dict.fromkeys(arm.task for arm in arms)
    return Plan(tuple(tasks), arms, int(results.config.get("samples", 1)))


def _line(rows: Sequence[Row]) -> Line:
    """A line with intervals; of several seeds the means of both."""
    points, bounds = [], []
    for shots in sorted({row.arm.shots for row in rows}):
        own = [row for row in rows if row.arm.shots == shots]
        points.append((float(shots), _mean([row.accuracy for row in own])))
        bounds.append(_interval(own))
    return Line(points, marks=True, bounds=bounds)


def _ways(config: PictureConfig, shown: Sequence[Results]) -> str:
    """A bar for each arm of all runs, controls last, with chance and the most common answer."""
    arms: dict[str, list[Row]] = {}
    for results in shown:
        samples = int(results.config.get("samples", 1))
        for row in results.rows:
            arms.setdefault(said(row.arm, samples), []).append(row)
    rows = [
        Bar(name, _mean([r.accuracy for r in own]), _interval(own), bool(own[0].arm.control))
        for name, own in arms.items()
    ]
    if not arms:
        return bars(config.title, (), {}, below=NOTHING, width=config.width)
    rows.sort(key=lambda bar: bar.aside)
    first = next(iter(arms.values()))[0]
    levels = {f"most common answer ({first.majority[0]})": first.majority[1]}
    if first.chance:
        levels[CHANCE] = first.chance
    shots = any(row.arm.shots for own in arms.values() for row in own)
    below = "(n): examples in the prompt" if shots else ""
    return bars(config.title, rows, levels, below=below, width=config.width)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _interval(rows: Sequence[Row]) -> tuple[float, float]:
    low, high = (_mean([row.interval[i] for row in rows]) for i in (0, 1))
    return low, high
