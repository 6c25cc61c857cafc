"""Packing: several samples in one row, so that no step is spent on padding.

Which tokens see which is the model's business (`Batch.positions`); here it is only decided which
samples share a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import ConfigError


def packed_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which samples share a row: first fit, longest first.

    First fit decreasing needs at most 11/9 of the fewest rows possible, and 6/9 of a row (Johnson
    1973; Dosa 2007).

    Args:
        lengths: Tokens of each sample.
        row_length: Tokens of a row.

    Returns:
        For each row the numbers of its samples; each number once.

    Raises:
        ConfigError: If a sample is longer than a row.

    Example:
        >>> packed_rows([5, 3, 4, 2], 7)
        [[0, 3], [2, 1]]
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        if length > row_length:
            raise ConfigError(
                f"a sample of {length} tokens fits no row of {row_length}: raise train.pack, or "
                "lower train.max_length"
            )
        row = next((r for r, room in enumerate(free) if room >= length), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_length)
        rows[row].append(number)
        free[row] -= length
    return rows
