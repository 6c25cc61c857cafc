from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data.packing import packed_rows, padded
from isthmus.errors import ConfigError


@given(lengths=st.lists(st.integers(1, 20), max_size=40), row=st.integers(20, 50))
def test_every_sample_has_one_place_and_no_row_overflows(lengths: list[int], row: int) -> None:
    rows = packed_rows(lengths, row)
    assert sorted(n for r in rows for n in r) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in r) <= row for r in rows)
    assert all(rows)
    # no more padding than with rows that hold all of one, and than one sample a row has
    longest = max(lengths, default=0)
    assert padded(lengths, rows) <= row
    assert len(rows) * padded(lengths, rows) <= max(len(lengths) * longest, row)


def test_longest_first_finds_the_fewest_rows() -> None:
    assert packed_rows([6, 4, 6, 4, 5, 5], 10) == [[0, 1], [2, 3], [4, 5]]


def test_rows_are_even_where_that_saves_padding() -> None:
    """In rows of up to 100, first fit fills one of 100 and pads the other from 20."""
    lengths = [40, 30, 30, 20]
    rows = packed_rows(lengths, 100)
    assert [sum(lengths[n] for n in row) for row in rows] == [60, 60]
    assert padded(lengths, rows) == 60


def test_a_longer_row_costs_more_than_a_little_padding() -> None:
    """Attention looks over a whole row: four rows of 512, not one of 2,048."""
    lengths = [512, 500, 512, 500]
    assert len(packed_rows(lengths, 4096)) == 4


def test_a_sample_that_fits_no_row() -> None:
    with pytest.raises(ConfigError, match=r"a sample of 11 tokens fits no row of 10"):
        packed_rows([3, 11], 10)
