"""Frozen features, computed once and kept on disk.

While a vision encoder is frozen and pictures are not augmented, its features never change, and
the encoder is most of a small model's training time. A cache file belongs to one encoder: its
name carries the encoder's fingerprint, feature layer and what its preprocessing makes of a probe,
and rows are found by the content of the picture's file. Runs and processes may share a folder: rows
are appended under a lock, a batch at a time, and a row's line in the index comes last, so a process
that is killed while filling loses at most the batch that it was writing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from rich.progress import track
from torch import Tensor

from isthmus.backbones.fingerprint import fingerprint
from isthmus.backbones.vision import VisionEncoder
from isthmus.data.prefetch import prefetch
from isthmus.data.records import Picture
from isthmus.errors import PictureError
from isthmus.images import open_picture

BATCH = 16
LINE_BYTES = 33
"""A line of the index: 32 hexadecimal digits and a line break."""
LARGEST = 65504.0
"""Largest number in half precision."""


@dataclass
class FillReport:
    """What `FeatureCache.fill` did.

    Attributes:
        computed: Rows that this process added.
        present: Pictures that had a row already, or got one from another process meanwhile.
        broken: Pictures that cannot be used, and why.
    """

    computed: int = 0
    present: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


class FeatureCache:
    """Features of pictures under one encoder, as a memory-mapped half-precision array.

    Args:
        folder: Where the cache lives; shared by all encoders.
        encoder: The frozen encoder.

    Attributes:
        path: The array of shape (rows, N, D_vision), float16.
        rows: Row numbers by the hash of a picture's bytes.
    """

    def __init__(self, folder: str | Path, encoder: VisionEncoder) -> None:
        self.encoder = encoder
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.path = Path(folder) / f"features-{_key(encoder)}.f16"
        self.index = self.path.with_suffix(".index")
        self._lock = FileLock(self.path.with_suffix(".lock"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.index.touch()
        self._hashes: dict[tuple[Path, int, int | None], tuple[tuple[int, int], str]] = {}
        self._array: np.ndarray | None = None
        self.rows: dict[str, int] = {}
        self._read_index()

    @property
    def _row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * 2

    def _read_index(self) -> None:
        """Finds the rows that are there in whole."""
        hashes = self.index.read_text(encoding="ascii").split("\n")[:-1]
        stored = self.path.stat().st_size // self._row_bytes
        self.rows = {h: i for i, h in enumerate(hashes[:stored]) if len(h) == LINE_BYTES - 1}

    def _hash(self, picture: Picture) -> str:
        """SHA-256 of a picture's bytes, 32 digits of it.

        Remembered for a file, as long as it is the same by size and time.
        """
        if picture.data is not None:
            return hashlib.sha256(picture.data).hexdigest()[:32]
        key = (picture.path, picture.start, picture.size)
        try:
            found = picture.path.stat()
        except OSError as error:
            raise PictureError(f"cannot read {picture}: {error.strerror}") from error
        stamp = (found.st_size, found.st_mtime_ns)
        known = self._hashes.get(key)
        if known is None or known[0] != stamp:
            known = (stamp, hashlib.sha256(picture.read()).hexdigest()[:32])
            self._hashes[key] = known
        return known[1]

    def __contains__(self, picture: Picture) -> bool:
        return self._hash(picture) in self.rows

    def fill(
        self,
        pictures: Iterable[Picture],
        *,
        quiet: bool = False,
        batch_size: int = BATCH,
        part: tuple[int, int] = (0, 1),
    ) -> FillReport:
        """Computes the features that are missing, with a progress bar.

        A picture that cannot be read is left out and reported.

        Args:
            pictures: Pictures; a picture twice is computed once.
            quiet: No progress bar.
            batch_size: Pictures of one forward pass, written together.
            part: (k, n) for the k-th of n processes that fill together: each begins at another
                place, and skips what it finds done.
        """
        report = FillReport()
        missing: dict[str, Picture] = {}
        for picture in pictures:
            try:
                digest = self._hash(picture)
            except PictureError as error:
                report.broken.append((str(picture), " ".join(str(error).split())))
                continue
            if digest in self.rows:
                report.present += 1
            else:
                missing.setdefault(digest, picture)
        items = list(missing.items())
        begin = len(items) * part[0] // part[1]
        items = items[begin:] + items[:begin]
        opened = prefetch(items, self._open, workers=2, ahead=2 * batch_size)
        batch: list[tuple[str, Picture, Tensor]] = []
        bar = track(opened, "Features", total=len(missing), disable=quiet or not missing)
        for digest, picture, pixels in bar:
            if isinstance(pixels, str):
                if pixels:
                    report.broken.append((str(picture), pixels))
                else:
                    report.present += 1
                continue
            batch.append((digest, picture, pixels))
            if len(batch) == batch_size:
                self._compute(batch, report)
                batch = []
        if batch:
            self._compute(batch, report)
        return report

    def _open(self, item: tuple[str, Picture]) -> tuple[str, Picture, Tensor | str]:
        """A picture's pixels, or what is wrong with it; "" where somebody else has done it."""
        digest, picture = item
        if digest in self.rows:
            return digest, picture, ""
        try:
            pixels = self.encoder.preprocess(open_picture(picture.read()))
        except PictureError as error:
            return digest, picture, " ".join(str(error).split())
        return digest, picture, pixels

    def _compute(self, batch: Sequence[tuple[str, Picture, Tensor]], report: FillReport) -> None:
        """Computes and appends the rows of a batch that nobody else has added meanwhile."""
        with self._lock:
            self._read_index()
            todo = [b for b in batch if b[0] not in self.rows]
        report.present += len(batch) - len(todo)
        if not todo:
            return
        features = self.encoder(torch.stack([pixels for _, _, pixels in todo])).cpu()
        kept: list[tuple[str, np.ndarray]] = []
        for (digest, picture, _), row in zip(todo, features, strict=True):
            if not bool((row.abs() <= LARGEST).all()):
                why = f"a feature is {float(row.abs().max()):.3g}, beyond half precision"
                report.broken.append((str(picture), f"{why}: set train.feature_cache = false"))
                continue
            kept.append((digest, row.to(torch.float16).numpy()))
        with self._lock:
            self._read_index()
            new = [(digest, row) for digest, row in kept if digest not in self.rows]
            with self.path.open("r+b") as data, self.index.open("r+b") as index:
                # Both are cut to the rows that both have: a line that outlived its row, or half a
                # line, would shift every line after it
                for file, size in ((data, self._row_bytes), (index, LINE_BYTES)):
                    file.truncate(len(self.rows) * size)
                    file.seek(0, os.SEEK_END)
                data.write(b"".join(row.tobytes() for _, row in new))
                data.flush()
                index.write("".join(f"{digest}\n" for digest, _ in new).encode("ascii"))
            for digest, _ in new:
                self.rows[digest] = len(self.rows)
        report.computed += len(new)
        report.present += len(kept) - len(new)

    def get(self, pictures: Sequence[Picture]) -> Tensor:
        """Features (P, N, D_vision) of pictures, float32; an `.npy` file is read as it is.

        Raises:
            PictureError: If a picture is not in the cache, or an array has another shape.
        """
        return torch.from_numpy(np.stack(list(self._read(pictures)))).float()

    def _read(self, pictures: Sequence[Picture]) -> Iterator[np.ndarray]:
        for picture in pictures:
            if picture.is_features:
                yield _array_of(picture, self.shape)
                continue
            row = self.rows.get(self._hash(picture))
            if row is None:  # another process may have added it
                self._read_index()
                row = self.rows.get(self._hash(picture))
            if row is None:
                raise PictureError(
                    f"no features of {picture} in {self.path}: it cannot be read, or the cache "
                    "was not filled"
                )
            if self._array is None or row >= len(self._array):
                shape = (self.path.stat().st_size // self._row_bytes, *self.shape)
                self._array = np.memmap(self.path, np.float16, "r", shape=shape)
            yield self._array[row]


def _array_of(picture: Picture, shape: tuple[int, int]) -> np.ndarray:
    """Features that were computed elsewhere."""
    try:
        features = np.load(picture.path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot read {picture}: {error}") from error
    if features.shape != shape:
        raise PictureError(f"{picture} is {features.shape}, expected {shape}")
    return np.asarray(features, dtype=np.float16)


def _key(encoder: VisionEncoder) -> str:
    """What features depend on but the picture: weights, layer, and preprocessing.

    Preprocessing may be any function, so it is told by what it makes of two probes.
    """
    digest = hashlib.sha256()
    digest.update(f"{fingerprint(encoder.model)} {encoder.config} {encoder.image_size}".encode())
    ramp = np.add.outer(np.arange(97), 2 * np.arange(131)) % 256
    for probe in (ramp, ramp.T):
        picture = Image.fromarray(np.stack([probe, 255 - probe, probe // 2], -1).astype(np.uint8))
        # rounded: a resize may differ in the last bits between two builds of a library
        pixels = encoder.preprocess(picture).float().mul(16).round().to(torch.int16)
        digest.update(pixels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
