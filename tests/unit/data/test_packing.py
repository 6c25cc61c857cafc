from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data.packing import packed_rows
from isthmus.errors import ConfigError


@given(lengths=st.lists(st.integers(1, 20), max_size=40), row=st.integers(20, 50))
def test_every_sample_has_one_place_and_no_row_overflows(lengths: list[int], row: int) -> None:
    rows = packed_rows(lengths, row)
    assert sorted(n for r in rows for n in r) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in r) <= row for r in rows)
    # any two rows together hold more than one row does, or they would be one
    filled = sorted(sum(lengths[n] for n in r) for r in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > row


def test_longest_first_finds_the_fewest_rows() -> None:
    assert packed_rows([6, 4, 6, 4, 5, 5], 10) == [[0, 1], [2, 3], [4, 5]]


def test_a_sample_that_fits_no_row() -> None:
    with pytest.raises(ConfigError, match=r"a sample of 11 tokens fits no row of 10"):
        packed_rows([3, 11], 10)
