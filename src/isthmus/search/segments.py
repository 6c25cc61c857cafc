"""Vectors on disk in segments of bounded size, searched by their nearest neighbours.

Only the segment that is written to is held in memory; the others are memory-mapped, so that a
million vectors need no more memory than one segment of them (as in log-structured stores, O'Neil
et al. 1996). Each is a graph of near neighbours (HNSW: Malkov and Yashunin 2018, arXiv 1603.09320)
in usearch's own format, half precision.

Letters: N vectors, D their width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import CheckpointError, MissingExtraError
from isthmus.files import write_atomically

SEGMENT = 65_536
"""Vectors of a segment: 512 wide, about 85 MB with their graph."""
EXACT = 20_000
"""Up to so many vectors every one is compared, which takes milliseconds and misses none."""
PATTERN = "vectors-*.usearch"
BREADTH = 64
"""Candidates that a search of the graph keeps (`ef` of the paper)."""

Vectors = NDArray[np.float32]
Keys = NDArray[np.uint64]


def usearch_index() -> Any:
    """The class of usearch's indexes.

    Raises:
        MissingExtraError: If usearch is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise MissingExtraError("searching images", "clip") from error
    return Index


class VectorSegments:
    """Vectors of length 1 by number, in files of a folder.

    A file is never changed: a segment that grew is written under a new name, and whoever keeps
    the list of names decides when the new one counts. What is added is found at once, and is on
    disk after `write`.

    Args:
        folder: Where the files are.
        width: Width D of the vectors.
        files: Names of the files that count, oldest first.
        segment: Most vectors of a file.

    Raises:
        CheckpointError: If a file is missing, damaged, or of another width.

    Example:
        >>> import tempfile
        >>> segments = VectorSegments(tempfile.mkdtemp(), 2, [])
        >>> segments.add([7], np.array([[0.6, 0.8]], dtype=np.float32))
        >>> segments.nearest(np.array([0.6, 0.8], dtype=np.float32), 1)[0]
        array([7], dtype=uint64)
    """

    def __init__(
        self, folder: str | Path, width: int, files: Sequence[str], *, segment: int = SEGMENT
    ) -> None:
        self.folder = Path(folder)
        self.width = width
        self.segment = segment
        self.files = list(files)
        self._open: list[Any] = [self._read(name, view=True) for name in self.files]
        self._growing: Any = None  # a copy in memory of the last file, or a new segment
        self._fresh = False  # whether it is to be a further file, not a longer last one
        self._unwritten = 0

    def __len__(self) -> int:
        return sum(len(index) for index in self._parts())

    @property
    def last_number(self) -> int:
        """The highest number of all; 0 if there is none."""
        return max((int(np.max(index.keys)) for index in self._parts() if len(index)), default=0)

    def add(self, keys: Sequence[int], vectors: Vectors) -> None:
        """Adds vectors (N, D) under new numbers; they may fill further files on the way."""
        done = 0
        while done < len(keys):
            growing = self._writable()
            some = min(len(keys) - done, self.segment - len(growing))
            part = slice(done, done + some)
            growing.add(np.asarray(keys[part], dtype=np.uint64), vectors[part])
            self._unwritten += some
            done += some
            if len(growing) >= self.segment:
                self.write()

    def write(self) -> None:
        """Writes what was added; `files` then names the files that hold everything.

        Raises:
            CheckpointError: If there is no room; nothing is lost of what was there.
        """
        if not self._unwritten:
            return
        name = f"vectors-{self._next_number():06d}.usearch"
        write_atomically(self.folder / name, lambda path: self._growing.save(str(path)))
        if self._fresh:
            self.files.append(name)
            self._open.append(None)
        else:
            self.files[-1] = name
        self._fresh, self._unwritten = False, 0
        if len(self._growing) >= self.segment:
            self._open[-1] = self._read(name, view=True)
            self._growing = None

    def nearest(self, query: Vectors, k: int) -> tuple[Keys, Vectors]:
        """The numbers and cosines of the k vectors nearest to (D,), nearest first.

        Exact up to 20,000 vectors in all; beyond, each file's graph is searched.
        """
        exact = len(self) <= EXACT
        keys, cosines = [], []
        for index in self._parts():
            if len(index):
                index.expansion_search = max(BREADTH, 2 * k)
                found = index.search(query, min(k, len(index)), exact=exact)
                keys.append(np.asarray(found.keys, dtype=np.uint64))
                cosines.append(1 - np.asarray(found.distances, dtype=np.float32))
        if not keys:
            return np.zeros(0, np.uint64), np.zeros(0, np.float32)
        every, each = np.concatenate(keys), np.concatenate(cosines)
        order = np.argsort(-each, kind="stable")[:k]
        return every[order], each[order]

    def rewritten(self, keep: Keys) -> VectorSegments:
        """The vectors of these numbers in files of their own, which are on disk.

        One file after another, so that no more than two segments are in memory.
        """
        made = VectorSegments(self.folder, self.width, [], segment=self.segment)
        for index in self._parts():
            own = np.asarray(index.keys, dtype=np.uint64)
            own = own[np.isin(own, keep)]
            for start in range(0, len(own), 4096):
                part = own[start : start + 4096]
                vectors = np.stack([np.asarray(v, np.float32) for v in index.get(part)])
                made.add([int(key) for key in part], vectors)
        made.write()
        return made

    # --- Inside -----------------------------------------------------------------------------

    def _next_number(self) -> int:
        """One more than any file's, so that no name is used twice."""
        numbers = [int(path.stem.partition("-")[2]) for path in self.folder.glob(PATTERN)]
        return max(numbers, default=0) + 1

    def _parts(self) -> list[Any]:
        parts = [index for index in self._open if index is not None]
        return parts if self._growing is None else [*parts, self._growing]

    def _writable(self) -> Any:
        if self._growing is not None:
            return self._growing
        if self.files and len(self._open[-1]) < self.segment:
            self._growing = self._read(self.files[-1], view=False)
            self._open[-1] = None
        else:
            self._growing = usearch_index()(ndim=self.width, metric="cos", dtype="f16")
            self._fresh = True
        return self._growing

    def _read(self, name: str, *, view: bool) -> Any:
        path = self.folder / name
        Index = usearch_index()
        try:
            found = Index.restore(str(path), view=view) if path.is_file() else None
        except Exception as error:  # usearch raises RuntimeError for whatever it reads
            raise CheckpointError(
                f"{path} is damaged ({error}): remove {self.folder} and index the images again"
            ) from error
        if found is None or found.ndim != self.width:
            what = "is missing or damaged" if found is None else f"holds vectors of {found.ndim}"
            raise CheckpointError(
                f"{path} {what}, expected vectors of {self.width}: remove {self.folder} and "
                "index the images again"
            )
        return found
