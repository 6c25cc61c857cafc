"""Whether a classifier serves some groups worse, and whether chance or other classes explain it.

Letters: n images, C classes, G groups, P permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isthmus.auditing.measures.classes import Numbers, checked_predictions
from isthmus.auditing.measures.group_tests import MOST_PAIRED, Group, Pair, each_group, each_pair
from isthmus.auditing.measures.parity import Parity, parity
from isthmus.auditing.measures.permutation import (
    count_table,
    expected,
    holm,
    p_value,
    permuted,
    share_labels,
)
from isthmus.errors import InputError

LEAST = 10
"""Images that a group needs in order to be compared."""


@dataclass(frozen=True)
class GroupComparison:
    """All groups of one column.

    Attributes:
        column: Its name.
        n: Images compared.
        missing: Images without a value, left out.
        groups: The groups that are compared.
        small: Groups of too few images to their number: listed, not compared.
        worst: The group of the lowest accuracy. All is None with fewer than two groups.
        best: The group of the highest.
        gap: Accuracy of the best less that of the worst.
        by_chance: The mean gap when groups are permuted: a gap is never 0.
        p: Permutation p of the gap.
        p_holm: The same, corrected for the number of columns; see `compare_columns`.
        by_labels: The mean gap when groups are permuted within labels: what chance and the labels
            of each group explain together.
        gap_within_labels: Gap of accuracy less expected accuracy: what labels do not explain.
        p_within_labels: Permutation p of it, permuted within labels; None without shared labels.
        parity: Demographic parity and equalised odds; None if not asked for.
        pairs: Every pair, with at most `MOST_PAIRED` groups.
        note: What a reader has to know of these numbers; empty where nothing.
    """

    column: str
    n: int
    missing: int
    groups: tuple[Group, ...]
    small: dict[str, int]
    worst: str | None
    best: str | None
    gap: float | None
    by_chance: float | None
    p: float | None
    p_holm: float | None
    by_labels: float | None
    gap_within_labels: float | None
    p_within_labels: float | None
    parity: Parity | None
    pairs: tuple[Pair, ...]
    note: str


def intersections(columns: Mapping[str, Sequence[object]]) -> list[str | None]:
    """The cross product of several columns: one value per image, None where any is missing.

    Example:
        >>> intersections({"age": ["old", "young"], "light": ["dim", None]})
        ['old, dim', None]
    """
    rows = [[group_name(v) for v in row] for row in zip(*columns.values(), strict=True)]
    return [None if None in row else ", ".join(v for v in row if v is not None) for row in rows]


def group_name(value: object) -> str | None:
    """A group's value as text; None if it is missing: None, an empty text or not a number.

    Example:
        >>> group_name(2), group_name(" "), group_name(float("nan"))
        ('2', None, None)
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return str(value).strip() or None


def compare_columns(
    targets: Numbers,
    predicted: Numbers,
    columns: Mapping[str, Sequence[object]],
    classes: int,
    *,
    least: int = LEAST,
    permutations: int = 2000,
    odds: bool = True,
    seed: int = 0,
) -> tuple[GroupComparison, ...]:
    """Compares the groups of each column, and of the intersections of all if there are several.

    Args:
        targets: The right classes (n,).
        predicted: The predicted classes (n,).
        columns: Column to the group of each image (n,); None where it is unknown.
        classes: C.
        least: Images that a group needs in order to be compared.
        permutations: P.
        odds: Whether to compute demographic parity and equalised odds, which need fairlearn.
        seed: Seed of the permutations.

    Returns:
        One comparison for each column, and one for the intersections; `p_holm` of each holds for
        all of them together.

    Raises:
        InputError: If a column has another length, or a number is no class.
        MissingExtraError: If fairlearn is needed and not installed.

    Example:
        >>> columns = {"light": ["dim", "dim", "bright", "bright"], "cat": ["a", "b", "a", None]}
        >>> found = compare_columns([0, 0, 0, 0], [1, 1, 0, 0], columns, 2, least=1)
        >>> [(c.column, c.gap) for c in found]
        [('light', 1.0), ('cat', 0.5), ('light, cat', 1.0)]
    """
    values = dict(columns)
    for name, column in values.items():
        _check_length(name, column, len(targets))
    if len(values) > 1:
        values[", ".join(values)] = intersections(columns)
    options: dict[str, Any] = {"least": least, "permutations": permutations, "seed": seed}
    found = [
        compare_groups(targets, predicted, column, classes, column=name, odds=odds, **options)
        for name, column in values.items()
    ]
    tested = [i for i, c in enumerate(found) if c.p is not None]
    corrected = holm([c.p for c in found if c.p is not None])
    for i, p in zip(tested, corrected, strict=True):
        found[i] = replace(found[i], p_holm=p)
    return tuple(found)


def compare_groups(
    targets: Numbers,
    predicted: Numbers,
    groups: Sequence[object],
    classes: int,
    *,
    column: str = "group",
    least: int = LEAST,
    permutations: int = 2000,
    odds: bool = True,
    seed: int = 0,
) -> GroupComparison:
    """Accuracy by group, its gap, and what chance and the groups' labels explain of it.

    A p-value is (1 + permutations at least as extreme) / (1 + P). A small `p` says that groups are
    served differently. A small `p_within_labels` says that they are even for images of the same
    label. Where only the first is small, groups merely have other labels, harder ones.

    Args:
        targets: The right classes (n,).
        predicted: The predicted classes (n,).
        groups: The group of each image (n,); None where it is unknown.
        classes: C.
        column: What the groups are of, for the result.
        least: Images that a group needs in order to be compared.
        permutations: P.
        odds: Whether to compute demographic parity and equalised odds, which need fairlearn.
        seed: Seed of the permutations.

    Raises:
        InputError: If the numbers of images differ, or a number is no class.
        MissingExtraError: If fairlearn is needed and not installed.

    Example:
        >>> groups = ["dim"] * 20 + ["bright"] * 20
        >>> found = compare_groups([0] * 40, [1] * 15 + [0] * 25, groups, 2)
        >>> found.worst, found.gap, found.p < 0.01, found.p_within_labels < 0.01
        ('dim', 0.75, True, True)
    """
    truth, said = checked_predictions(targets, predicted, classes)
    _check_length(column, groups, len(truth))
    names = np.array([group_name(g) or "" for g in groups])
    images = {str(g): int((names == g).sum()) for g in np.unique(names) if g}
    compared = [g for g, n in images.items() if n >= least]
    kept = np.isin(names, compared)
    truth, said, names = truth[kept], said[kept], names[kept]
    result = GroupComparison(
        column=column,
        n=len(names),
        missing=len(kept) - sum(images.values()),
        groups=(),
        small={g: n for g, n in images.items() if n < least},
        worst=None,
        best=None,
        gap=None,
        by_chance=None,
        p=None,
        p_holm=None,
        by_labels=None,
        gap_within_labels=None,
        p_within_labels=None,
        parity=None,
        pairs=(),
        note=_too_few(compared, len(images), least),
    )
    if len(compared) < 2:
        return result
    which = np.searchsorted(compared, names)
    table = count_table(which, truth, truth == said)
    rng = np.random.default_rng(seed)
    free = permuted(table.merged(), permutations, rng)
    within = permuted(table, permutations, rng) if share_labels(table).any() else None
    found = each_group(compared, table, free, within)
    best, worst = (pick(found, key=lambda g: g.accuracy) for pick in (max, min))
    gap, sizes = best.accuracy - worst.accuracy, table.images.sum(axis=1)
    by_chance = np.ptp(free / sizes, axis=1)
    p = p_value(by_chance, gap)
    result = replace(
        result,
        groups=found,
        worst=worst.name,
        best=best.name,
        gap=gap,
        by_chance=float(by_chance.mean()),
        p=p,
        p_holm=p,
        parity=parity(truth, said, which, rng=np.random.default_rng(seed)) if odds else None,
        pairs=each_pair(compared, table, permutations, rng),
        note=_note(len(compared), within is None),
    )
    if within is None:
        return result
    middle = expected(table)
    beyond = float(np.ptp((table.right.sum(axis=1) - middle) / sizes))
    return replace(
        result,
        by_labels=float(np.ptp(within / sizes, axis=1).mean()),
        gap_within_labels=beyond,
        p_within_labels=p_value(np.ptp((within - middle) / sizes, axis=1), beyond),
    )


def _check_length(column: str, groups: Sequence[object], n: int) -> None:
    if len(groups) != n:
        raise InputError(
            f'column "{column}" has {len(groups)} values for {n} images: expected one for each, '
            "None where it is unknown"
        )


def _too_few(compared: Sequence[str], groups: int, least: int) -> str:
    named = f', "{compared[0]}"' if compared else ""
    return (
        f"{len(compared)} of {groups} groups{named} have {least} images or more: two are needed "
        "to compare."
    )


def _note(groups: int, confounded: bool) -> str:
    told = []
    if confounded:
        told.append("No label has images of two groups: groups and labels cannot be told apart.")
    if groups > MOST_PAIRED:
        told.append(f"There are {groups} groups: pairs are compared up to {MOST_PAIRED}.")
    return " ".join(told)
