"""Frozen features of attachments that come in pieces, such as the tiles of an image.

    KEY.f16     rows of (N, D_vision), one for each piece; see `feature_store`
    KEY.told    a line for each attachment: the hash of its bytes, how many pieces, what is told

A row is found by the attachment's hash and the number of the piece. An attachment's line is written
after all of its rows, so that one whose line is there is whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sized
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from isthmus.data.feature_store import FeatureStore
from isthmus.data.features import ContentKeys, FillReport
from isthmus.errors import ImageError, MediaError
from isthmus.files import content_key
from isthmus.media.file_ref import FileRef
from isthmus.media.prefetch import prefetch
from isthmus.model.features import PieceEncoding
from isthmus.reports.progress import Progress

_LINE = re.compile(r"([0-9a-f]{32}) (\d+)((?: -?\d+)*)")


class PieceCache:
    """Features of attachments under one encoding, found by their content.

    Like a `FeatureCache`, it is filled and read by any number of processes and threads.

    Args:
        folder: Where the cache lives; shared by all encodings.
        encoding: What is kept of each piece.

    Attributes:
        path: The array of shape (rows, N, D).
        store: That file and its index.
    """

    def __init__(self, folder: str | Path, encoding: PieceEncoding) -> None:
        self.encoding = encoding
        self.path = Path(folder) / encoding.name
        self.store = FeatureStore(self.path, encoding.shape, encoding.dtype)
        self.key = ContentKeys()
        self._file = self.path.with_suffix(".told")
        self._told: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._read = 0

    def get(self, file: FileRef) -> tuple[Tensor, tuple[int, ...]]:
        """Features (T, N, D) of an attachment's pieces, float32, and what is told of it.

        Raises:
            ImageError: If it cannot be read, or is not in the cache.
        """
        key = self._key(file)
        if not self._whole(key):
            self.encoding.open(file, file.read(), key)  # says what is wrong with it
            raise ImageError(f"no features of {file} in {self.path}: fill the cache first")
        count, told = self._told[key]
        rows = [np.asarray(self.store[_piece(key, i)], np.float32) for i in range(count)]
        return torch.from_numpy(np.stack(rows)), told

    def fill(
        self,
        files: Iterable[FileRef],
        *,
        quiet: bool = False,
        workers: int = 2,
    ) -> FillReport:
        """Computes the features that are missing; see `FeatureCache.fill`.

        Args:
            files: The attachments, in any order; the same one may come again.
            quiet: Show no progress.
            workers: Threads that open attachments ahead of the encoder.

        Raises:
            ImageError: If a feature is too large for half precision, or not finite; what was
                computed before is kept.
        """
        total = len(files) if isinstance(files, Sized) else None
        computed = 0
        broken: list[tuple[str, str]] = []
        opened = prefetch(files, self._open, workers=workers, ahead=2 * max(2, workers))
        with Progress("Features", total, unit="images", quiet=quiet) as progress, closing(opened):
            for one in opened:
                if one.why:
                    broken.append((str(one.file), one.why))
                elif one.pieces is not None and not self._whole(one.key):
                    rows = self.encoding.encode(one.pieces, [one.file] * len(one.pieces))
                    self._keep(one.key, rows, one.told)
                    computed += 1
                progress.advance()
        return FillReport(computed, progress.done - computed - len(broken), tuple(broken))

    def _open(self, file: FileRef) -> _Opened:
        """An attachment's hash; its pieces unless they are there; or why there are none."""
        try:
            key = self._key(file)
            if self._whole(key):
                return _Opened(file, key)
            key = content_key(data := file.read())  # of the very bytes that the pieces are of
            pieces, told = self.encoding.open(file, data, key)
            return _Opened(file, key, pieces, told)
        except MediaError as error:
            return _Opened(file, why=str(error))

    def _key(self, file: FileRef) -> str:
        if file.is_features:
            raise ImageError(f"{file} holds features: expected an image, since it comes in tiles")
        return self.key(file)

    def _whole(self, key: str) -> bool:
        """Whether an attachment's line is there, and all of its rows."""
        if key not in self._told:
            self._refresh()
        if key not in self._told:
            return False
        return all(_piece(key, i) in self.store for i in range(self._told[key][0]))

    def _refresh(self) -> None:
        """Reads what was added to the lines since."""
        start = self._read
        try:
            with self._file.open("rb") as file:
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # another process may be writing the last one
        for line in whole.decode("ascii", "replace").splitlines():
            if found := _LINE.fullmatch(line):  # half a line of a run that was killed is none
                told = tuple(int(number) for number in found[3].split())
                self._told[found[1]] = (int(found[2]), told)
        self._read = start + len(whole)  # not +=: another thread may have read the same

    def _keep(self, key: str, rows: np.ndarray, told: tuple[int, ...]) -> None:
        self.store.append([_piece(key, i) for i in range(len(rows))], rows)
        line = " ".join(map(str, (key, len(rows), *told)))
        with FileLock(self.path.with_suffix(".lock")), self._file.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(f"{line}\n".encode("ascii"))
        self._refresh()


def _piece(key: str, number: int) -> str:
    """What a row is found by."""
    return content_key(f"{key} {number}".encode("ascii"))


@dataclass(frozen=True)
class _Opened:
    """An attachment on its way into the cache."""

    file: FileRef
    key: str = ""
    pieces: Tensor | None = None
    told: tuple[int, ...] = ()
    why: str = ""
