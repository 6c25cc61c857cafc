"""Results: one row for each arm, with everything that is needed to doubt it. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.evaluation.arms import Arm
from isthmus.evaluation.metrics import (
    bootstrap_difference,
    bootstrap_mean,
    character_error_rate,
    majority,
    mcnemar,
    wilson,
)
from isthmus.evaluation.records import Answered
from isthmus.evaluation.task import Task
from isthmus.prompts.answers import same_answer

NO_CHAIN = "no chain that the model wrote held up"
"""Why an arm of Auto-CoT is left out."""


@dataclass(frozen=True)
class Compared:
    """An arm beside the task's first one, on the same questions.

    Attributes:
        arm: The first arm's id.
        difference: Accuracy of this arm less that of the first.
        interval: Its 95 % interval, by paired bootstrap.
        p: McNemar's exact two-sided p; None where answers can be partly right.
        only_first: Questions that only the first arm has right.
        only_this: Questions that only this arm has right.
    """

    arm: str
    difference: float
    interval: tuple[float, float]
    p: float | None
    only_first: int
    only_this: int


@dataclass(frozen=True)
class Group:
    """An arm's answers to one kind of question.

    Attributes:
        name: The kind, as the task calls it.
        n: Questions.
        accuracy: Mean worth of the answers.
        interval: 95 %, as for a row.
        majority: The most common right answer and its share.
    """

    name: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    majority: tuple[str, float]


@dataclass(frozen=True)
class Row:
    """What came out of one arm.

    Attributes:
        arm: The arm.
        n: Questions.
        accuracy: Mean worth of the answers; one that did not parse is worth nothing.
        interval: 95 %: Wilson's, or a bootstrap's where answers can be partly right.
        chance: Accuracy of guessing evenly.
        majority: The most common right answer and its share of the questions.
        majority_of_shots: Accuracy of giving the most common answer among each question's
            demonstrations; None without any.
        unparsed: Share of answers in which none was found.
        accuracy_parsed: Accuracy over the others; None if there are none.
        compared: The arm beside the task's first one; None for that one.
        character_error_rate: For tasks that read text; None for others.
        accuracy_any_case: The same tasks, where capitals count as small letters.
        prompt_tokens: Tokens of all prompts.
        cached_tokens: How many of these were not computed anew.
        new_tokens: Tokens written or scored.
        seconds: Time spent.
        groups: The kinds of question, where the task tells several apart.
    """

    arm: Arm
    n: int
    accuracy: float
    interval: tuple[float, float]
    chance: float
    majority: tuple[str, float]
    majority_of_shots: float | None
    unparsed: float
    accuracy_parsed: float | None
    compared: Compared | None
    character_error_rate: float | None
    accuracy_any_case: float | None
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    seconds: float
    groups: tuple[Group, ...] = ()


def row_of(
    task: Task,
    arm: Arm,
    answered: Sequence[Answered],
    *,
    first: tuple[Arm, Sequence[Answered]] | None = None,
) -> Row:
    """Sums up the records of an arm.

    Args:
        task: Its task.
        arm: The arm.
        answered: Its records.
        first: The task's first arm with its records, of the same questions.
    """
    worth = [a.right for a in answered]
    n, parsed = len(answered), [a for a in answered if a.parsed is not None]
    expected = [a.expected for a in answered]
    usual = [same_answer(a.usual, a.expected, task.kind) for a in answered if a.usual is not None]
    rate = any_case = None
    if task.metric == "characters":
        rate = character_error_rate([a.parsed or "" for a in answered], expected)
        accepted = {item.id: item.answers for item in task.items}
        any_case = sum(_in_any_case(a, accepted.get(a.item, ())) for a in answered) / n
    return Row(
        arm=arm,
        n=n,
        accuracy=sum(worth) / n,
        interval=_interval(worth),
        chance=task.chance,
        majority=majority(expected),
        majority_of_shots=sum(usual) / len(usual) if usual else None,
        unparsed=1 - len(parsed) / n,
        accuracy_parsed=sum(a.right for a in parsed) / len(parsed) if parsed else None,
        compared=None if first is None else compare(first[0], first[1], answered),
        character_error_rate=rate,
        accuracy_any_case=any_case,
        prompt_tokens=sum(a.prompt_tokens for a in answered),
        cached_tokens=sum(a.cached_tokens for a in answered),
        new_tokens=sum(a.new_tokens for a in answered),
        seconds=sum(a.seconds for a in answered),
        groups=_groups(answered),
    )


def _in_any_case(record: Answered, accepted: Sequence[str]) -> bool:
    """Whether a text is one of the right ones where capitals do not count."""
    got = (record.parsed or "").strip().casefold()
    return got in {right.casefold() for right in (record.expected, *accepted)}


def _interval(worth: Sequence[float]) -> tuple[float, float]:
    """Wilson's interval, or a bootstrap's where answers can be partly right."""
    if any(w not in (0.0, 1.0) for w in worth):
        return bootstrap_mean(worth)
    return wilson(round(sum(worth)), len(worth))


def _groups(answered: Sequence[Answered]) -> tuple[Group, ...]:
    """The kinds of question; none where there is one."""
    kinds: dict[str, list[Answered]] = {}
    for record in answered:
        kinds.setdefault(record.group, []).append(record)
    if len(kinds) < 2:
        return ()
    found = []
    for name, own in kinds.items():
        worth, usual = [a.right for a in own], majority([a.expected for a in own])
        mean = sum(worth) / len(worth)
        found.append(Group(name, len(own), mean, _interval(worth), usual))
    return tuple(found)


def compare(arm: Arm, first: Sequence[Answered], second: Sequence[Answered]) -> Compared:
    """Two arms on the questions that both answered.

    Args:
        arm: The first arm.
        first: Its records.
        second: The other arm's records.
    """
    by_item = {a.item: a.right for a in first}
    pairs = [(by_item[a.item], a.right) for a in second if a.item in by_item]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    whole = all(v in (0.0, 1.0) for pair in pairs for v in pair)
    b, c = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    return Compared(
        arm=arm.id,
        difference=(sum(theirs) - sum(ours)) / len(pairs),
        interval=bootstrap_difference(ours, theirs),
        p=mcnemar(b, c) if whole else None,
        only_first=b,
        only_this=c,
    )


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Attributes:
        rows: One for each arm, task by task; the first of a task is what the others are compared
            with.
        config: What was asked for.
        left_out: Arms that make no sense, and why.
        folder: Where records and report are; None if they were not kept.
    """

    rows: tuple[Row, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "rows": [{"id": r.arm.id, **asdict(r)} for r in self.rows],
            "left_out": dict(self.left_out),
            "config": dict(self.config),
            "folder": None if self.folder is None else str(self.folder),
        }

    def told_left_out(self) -> list[str]:
        """Why arms were left out, with how many of each task."""
        counts = Counter((arm.partition(",")[0], why) for arm, why in self.left_out.items())
        return [f"{task}, {n} arms: {why}" for (task, why), n in counts.items()]

    def markdown(self) -> str:
        """The results as tables in Markdown, one for each task."""
        tasks = list(dict.fromkeys(r.arm.task for r in self.rows))
        parts = [_table([r for r in self.rows if r.arm.task == task], task) for task in tasks]
        if self.left_out:
            listed = [f"- {told}" for told in self.told_left_out()]
            parts.append("\n".join(["Left out:", "", *listed]))
        return "\n\n".join(parts) + "\n"


def percent(value: float | None) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.125)
        '12.5%'
    """
    return "" if value is None else f"{100 * value:.1f}%"


def p_value(p: float | None) -> str:
    """A p as people read it.

    Example:
        >>> p_value(0.00001)
        '<0.0001'
    """
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def cells(row: Row, *, with_errors: bool) -> list[str]:
    """The figures of a row, as texts."""
    told = [
        str(row.arm.shots),
        row.arm.reasoning,
        row.arm.control,
        str(row.arm.seed),
        str(row.n),
        percent(row.accuracy),
        f"{percent(row.interval[0])} to {percent(row.interval[1])}",
        percent(row.chance),
        f"{percent(row.majority[1])} ({row.majority[0]})",
        percent(row.majority_of_shots),
        percent(row.unparsed),
        percent(row.accuracy_parsed),
    ]
    if row.compared is None:
        told += ["", ""]
    else:
        low, high = row.compared.interval
        told.append(f"{100 * row.compared.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        counts = f"{row.compared.only_first}, {row.compared.only_this}"
        told.append(f"{p_value(row.compared.p)} ({counts})")
    if with_errors:
        told += [percent(row.character_error_rate), percent(row.accuracy_any_case)]
    told.append(f"{row.prompt_tokens:,} ({row.cached_tokens:,})")
    return [*told, f"{row.new_tokens:,}", f"{row.seconds:.1f}"]


def headings(*, with_errors: bool) -> list[str]:
    """What the cells of a row are."""
    first = ["shots", "reasoning", "control", "seed", "n", "accuracy", "95 %", "chance", "majority"]
    first += [
        "majority of shots",
        "unparsed",
        "of parsed",
        "points over the first arm",
        "McNemar p (b, c)",
    ]
    errors = ["character errors", "in any case"] if with_errors else []
    return [*first, *errors, "prompt tokens (cached)", "new tokens", "seconds"]


def _table(rows: Sequence[Row], task: str) -> str:
    errors = any(r.character_error_rate is not None for r in rows)
    names = headings(with_errors=errors)
    lines = [f"### {task}", "", table_line(names), table_line(["---"] * len(names))]
    return "\n".join([*lines, *(table_line(cells(r, with_errors=errors)) for r in rows)])


def table_line(texts: Sequence[str]) -> str:
    """A line of a table; a bar inside of a text would end its cell."""
    return "| " + " | ".join(t.replace("|", "\\|").replace("\n", " ") for t in texts) + " |"
