"""Rows that are decoded: what the running batch needs of whoever holds their states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from isthmus.generation.rows import Rows


class Decoding(Protocol):
    """Rows that get a token at each step, and join and leave between two steps.

    `tiers.Tiers` decodes them in one pass, or a pass for each range of lengths. `apart.Apart` needs
    a pass for each group that was prefilled together.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes that the rows' keys and values take."""
        ...

    def join(self, rows: Rows, which: Sequence[int]) -> None:
        """Takes rows of a batch that was prefilled, behind the others.

        Args:
            rows: The batch, which nobody uses any more.
            which: Numbers of its rows; one that stands there twice becomes two rows.
        """
        ...

    def leave(self, row: int) -> None:
        """Lets a row go; the last one takes its number."""
        ...

    def states(self, row: int) -> Any:
        """A row's states, which nobody will write to; None if they cannot be had alone."""
        ...

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row.

        Raises:
            CacheFull: If there is no room for all of them; no row has its token then.
        """
        ...
