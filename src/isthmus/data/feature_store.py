"""The files of a feature cache: rows, their index, locks. Knows no encoder and no images.

    features-KEY.f16      rows of (N, D_vision), float16 unless another type is asked for
    features-KEY.index    a line for each row, 32 hexadecimal digits of the bytes' SHA-256
    features-KEY.lock     held while rows are appended

A row's line is written after the row, so a run that is killed loses at most the rows that it was
writing; the next to append cuts both files to what both have. The operating system frees the lock
of a process that is killed. Reading takes no lock, and a folder that cannot be written will do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

LINE_BYTES = 33
"""A line of the index: 32 hexadecimal digits and a line break."""


class FeatureStore:
    """Rows of one shape, found by hash; safe for several processes.

    Args:
        path: The array's file, `features-KEY.f16`.
        shape: Shape (N, D_vision) of a row.
        dtype: Type of its numbers.

    Attributes:
        index: The hashes of the rows.
        rows: Row of each hash, as far as the index was read.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: Any = np.float16) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.index = path.with_suffix(".index")
        self.rows: dict[str, int] = {}
        self._lines = 0
        self._array: Any = None
        self.refresh()

    @property
    def _row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __contains__(self, key: str) -> bool:
        """Whether there is a row, also one that another process has just written."""
        return key in self.rows or key in self.refresh()

    def __getitem__(self, key: str) -> Any:
        """A row (N, D_vision) on the disk.

        Raises:
            KeyError: If there is none, as far as the index was read.
        """
        row = self.rows[key]
        return self._mapped(row + 1)[row]

    def gather(self, rows: Any, places: Any) -> Any:
        """Vectors (P, D_vision): of each row (P,) the one in a place (P,) of its N."""
        return self._mapped(int(rows.max()) + 1)[rows, places]

    def _mapped(self, rows: int) -> Any:
        """The array, of at least so many rows."""
        if self._array is None or rows > len(self._array):
            shape = (max(self._lines, rows), *self.shape)
            self._array = np.memmap(self.path, self.dtype, "r", shape=shape)
        return self._array

    def refresh(self) -> dict[str, int]:
        """Reads what was added to the index since, and returns `rows`."""
        try:
            stored = self.path.stat().st_size // self._row_bytes
            with self.index.open("rb") as file:
                lines = min(os.fstat(file.fileno()).st_size // LINE_BYTES, stored)
                if lines < self._lines:  # another cache in its place
                    self.rows, self._lines, self._array = {}, 0, None
                start = self._lines
                file.seek(start * LINE_BYTES)
                text = file.read((lines - start) * LINE_BYTES).decode("ascii", "replace")
        except FileNotFoundError:
            return self.rows
        for i, key in enumerate(text.split("\n")[:-1]):
            self.rows[key] = start + i
        self._lines = lines
        return self.rows

    def append(self, keys: Sequence[str], features: Any) -> None:
        """Writes rows of features, those that are not there yet.

        Args:
            keys: What `key` gives for the images.
            features: (P, N, D_vision).
        """
        lock = FileLock(self.path.with_suffix(".lock"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock, self.path.open("ab") as data, self.index.open("ab") as index:
            # Both are cut to the rows that both have: a line that outlived its row, or half a
            # line, would shift every line after it
            rows = min(data.tell() // self._row_bytes, index.tell() // LINE_BYTES)
            data.truncate(rows * self._row_bytes)
            index.truncate(rows * LINE_BYTES)
            self.refresh()
            new = {key: i for i, key in enumerate(keys) if key not in self.rows}
            data.write(np.ascontiguousarray(features[list(new.values())], self.dtype).tobytes())
            data.flush()
            os.fsync(data.fileno())  # no line may be on the disk before its row
            index.write("".join(f"{key}\n" for key in new).encode("ascii"))
        self.refresh()
