"""Packing: several samples in one row, so that no step is spent on padding.

Which tokens see which is the model's business (`Batch.positions`); here it is only decided which
samples share a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from isthmus.errors import ConfigError

ATTENTION = 2048
"""Tokens of a row at which attention costs about what all linear maps do; more in larger models."""
SLACK = (1.0, 1.05, 1.1, 1.2)
"""How much longer than even rows those that are tried are, since samples do not fit exactly."""
TRIED = 32
"""Most lengths of rows that are tried."""


def packed_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which samples share a row: first fit, longest first, in rows as short as pays.

    All rows of a batch are filled up to the longest of them, and attention looks over a whole row.
    So rows of every length up to `row_length` that could suit are tried, and those that cost least
    are taken. First fit decreasing needs at most 11/9 of the fewest rows possible, and 6/9 of a row
    (Johnson 1973; Dosa 2007).

    Args:
        lengths: Tokens of each sample.
        row_length: Most tokens of a row.

    Returns:
        For each row the numbers of its samples; each number once.

    Raises:
        ConfigError: If a sample is longer than a row.

    Example:
        >>> packed_rows([5, 3, 4, 2], 20)
        [[0, 3], [2, 1]]
    """
    longest, total = max(lengths, default=0), sum(lengths)
    if longest > row_length:
        raise ConfigError(
            f"a sample of {longest} tokens fits no row of {row_length}: raise train.pack, or "
            "lower train.max_length"
        )
    most = total // max(1, longest) + 1  # more rows than this are no shorter
    fewest = -(-total // row_length)
    even = {slack * total / rows for rows in range(max(1, fewest), most + 1) for slack in SLACK}
    tried = sorted({row_length, *(min(row_length, max(longest, math.ceil(n))) for n in even)})
    tried = tried[:: -(-len(tried) // TRIED)]
    found = [_first_fit(lengths, length) for length in tried]
    return min(found, key=lambda rows: _cost(lengths, rows))


def padded(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Tokens of each row, as long as the longest of them is.

    Example:
        >>> padded([5, 3, 4, 2], [[0, 3], [2, 1]])
        7
    """
    return max((sum(lengths[n] for n in row) for row in rows), default=0)


def _cost(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> float:
    length = padded(lengths, rows)
    return len(rows) * length * (1 + length / ATTENTION)


def _first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        row = next((r for r, room in enumerate(free) if room >= length), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_length)
        rows[row].append(number)
        free[row] -= length
    return rows
