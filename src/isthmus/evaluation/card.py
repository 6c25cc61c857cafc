"""The card of a model: its results in one Markdown file, with what was run. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from isthmus.config.evaluation import EvaluationConfig, SuiteConfig, options_of
from isthmus.evaluation.pictures import CONTROLS, said
from isthmus.evaluation.results import NO_CHAIN, Group, Results, Row, p_value, percent, table_line

HEADINGS = ("asked", "shots", "n", "right", "95%", "difference from first row")
BASELINES = ("chance", "majority", "no answer found")
LEGEND = (
    "Intervals are at 95%: Wilson's, or a bootstrap's where answers can be partly right. They take "
    "questions as independent, so where questions repeat images they are somewhat too narrow; the "
    "number of different images is said there. An answer in which none was found is wrong. "
    "Majority is always giving the most common right answer. The difference from the first row is "
    "in points, with a paired bootstrap's interval and McNemar's exact p."
)


def card(suite: SuiteConfig, results: Mapping[str, Results], command: str) -> str:
    """The card.

    Args:
        suite: What was run.
        results: Results by the names of their runs.
        command: How to run it again.
    """
    parts = [f"`{command}`"] if command else []
    parts.append(LEGEND)
    parts += [f"![{p.title}]({p.name}.svg)" for p in suite.picture]
    for run in suite.run:
        if run.name in results:
            parts.append(_section(run, results[run.name]))
    return "\n\n".join(parts) + "\n"


def _section(run: EvaluationConfig, results: Results) -> str:
    """The table of a run, under what was asked for."""
    told = [f"{key} = {_value(value)}" for key, value in options_of(run).items() if key != "seeds"]
    seeds = ", ".join(str(seed) for seed in range(run.seeds))
    weights, precision = results.config.get("weights", ""), results.config.get("dtype")
    told += [f"seed {seeds}", f"weights {weights}{f' in {precision}' if precision else ''}"]
    parts = [f"### {run.name}", run.about, ", ".join(told)]
    for task in dict.fromkeys(row.arm.task for row in results.rows):
        rows = [row for row in results.rows if row.arm.task == task]
        parts += [_repeated(results, task), _table(run, task, rows)]
    parts += [
        f"Left out: {arm}: {NO_CHAIN}." for arm, why in results.left_out.items() if why == NO_CHAIN
    ]
    return "\n\n".join(part for part in parts if part)


def _repeated(results: Results, task: str) -> str:
    """How many different images are asked about; empty where each is another one."""
    told = results.config.get("tasks", {}).get(task, {})
    shown, different = told.get("images"), told.get("different_images")
    if shown is None or shown == different:
        return ""
    classes = told.get("different_classes")
    of_classes = f" of {classes:,} classes" if classes else ""
    in_all = f" ({shown:,} are shown)" if shown != told["n"] else ""
    return (
        f"The {told['n']:,} questions of {task} are about {different:,} different images"
        f"{of_classes}{in_all}."
    )


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def _table(run: EvaluationConfig, task: str, rows: Sequence[Row]) -> str:
    """A row for each arm; controls that take something away beside the arm that they control."""
    plain = [row for row in rows if not row.arm.control]
    controls = list(dict.fromkeys(row.arm.control for row in rows if row.arm.control))
    reads = any(row.character_error_rate is not None for row in rows)
    several = len({row.arm.seed for row in rows}) > 1
    names = [*HEADINGS, *(CONTROLS[c] for c in controls), *BASELINES]
    names += ["in any case", "character errors"] if reads else []
    names += ["seed"] if several else []
    lines = [f"**{task}**", "", table_line(names), table_line(["---"] * len(names))]
    for row in plain:
        beside = [_beside(row, control, rows) for control in controls]
        told = [*_first(run, row), *beside, *_baselines(row)]
        if reads:
            told += [percent(row.accuracy_any_case), percent(row.character_error_rate)]
        told += [str(row.arm.seed)] if several else []
        lines.append(table_line(told))
        for group in row.groups if run.groups else ():
            own = [*_of_group(group), *[""] * len(controls), "", _majority(group.majority)]
            lines.append(table_line([*own, *[""] * (len(names) - len(own))]))
    return "\n".join(lines)


def _first(run: EvaluationConfig, row: Row) -> list[str]:
    """What an arm is and what came out."""
    compared = ""
    if row.compared is not None:
        low, high = (100 * end for end in row.compared.interval)
        p = f", p {p_value(row.compared.p)}" if row.compared.p is not None else ""
        compared = f"{100 * row.compared.difference:+.1f} ({low:+.1f} to {high:+.1f}){p}"
    way = said(replace(row.arm, shots=0), run.samples)
    right = f"**{percent(row.accuracy)}**"
    return [way, str(row.arm.shots), f"{row.n:,}", right, _interval(row.interval), compared]


def _of_group(group: Group) -> list[str]:
    return [
        f"- {group.name}",
        "",
        str(group.n),
        percent(group.accuracy),
        _interval(group.interval),
        "",
    ]


def _beside(row: Row, control: str, rows: Sequence[Row]) -> str:
    """The same arm under a control."""
    wanted = (row.arm.shots, row.arm.reasoning, row.arm.seed, control)
    for other in rows:
        arm = other.arm
        if (arm.shots, arm.reasoning, arm.seed, arm.control) == wanted:
            return f"{percent(other.accuracy)} ({_interval(other.interval)})"
    return ""


def _baselines(row: Row) -> list[str]:
    chance = percent(row.chance) if row.chance else ""
    return [chance, _majority(row.majority), percent(row.unparsed)]


def _majority(most: tuple[str, float]) -> str:
    return f"{percent(most[1])} ({most[0]})"


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
