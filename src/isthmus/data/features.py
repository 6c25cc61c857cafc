"""Frozen features, computed once and kept on disk.

While a vision encoder is frozen and pictures are not augmented, its features never change, and
the encoder is most of a small model's training time. A cache file belongs to one encoder: its
name carries the encoder's fingerprint, feature layer and preprocessing, and rows are found by the
content of the picture's file. Rows are appended, the row's line in the index last, so a run that
is killed while filling loses at most the row it was writing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from isthmus.backbones.fingerprint import fingerprint
from isthmus.backbones.vision import VisionEncoder
from isthmus.errors import PictureError
from isthmus.images import open_picture

CHUNK = 16
LINE_BYTES = 33
"""A line of the index: 32 hexadecimal digits and a line break."""


def file_hash(path) -> str:
    """SHA-256 of a file's bytes, 32 hexadecimal digits of it."""
    try:
        return hashlib.sha256(path.read()).hexdigest()[:32]
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror}") from error


class FeatureCache:
    """Features of pictures under one encoder, as a memory-mapped half-precision array.

    Args:
        folder: Where the cache lives; shared by all encoders.
        encoder: The frozen encoder.

    Attributes:
        path: The array of shape (rows, N, D_vision), float16.
    """

    def __init__(self, folder: str | Path, encoder: VisionEncoder) -> None:
        config = encoder.config
        recipe = f"{fingerprint(encoder.model)} {config} {encoder.image_size}"
        key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self.encoder = encoder
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.path = Path(folder) / f"features-{key}.f16"
        self.index = self.path.with_suffix(".index")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.index.touch()
        hashes = self.index.read_text(encoding="ascii").split("\n")[:-1]
        stored = self.path.stat().st_size // self._row_bytes
        self.rows = {h: i for i, h in enumerate(hashes[:stored])}
        self._hashes: dict[Path, str] = {}

    @property
    def _row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * 2

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return self._hashes[path]

    def fill(self, pictures: Iterable[Path], *, quiet: bool = False) -> int:
        """Computes the features that are missing, with a progress bar.

        Args:
            pictures: Paths of pictures.
            quiet: No progress bar.

        Returns:
            How many were computed.

        Raises:
            PictureError: If a picture cannot be read; those before it are kept.
        """
        missing = list(
            {self._hash(p): p for p in pictures if self._hash(p) not in self.rows}.items()
        )
        chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
        with self.path.open("r+b") as data, self.index.open("r+b") as index:
            # Both are cut to the rows that both have: a line that outlived its row, or half a
            # line, would shift every line after it
            for file, size in ((data, self._row_bytes), (index, LINE_BYTES)):
                file.truncate(len(self.rows) * size)
                file.seek(0, os.SEEK_END)
            for chunk in track(chunks, description="Features", disable=quiet or not chunks):
                pixels = [self.encoder.preprocess(open_picture(path.read())) for _, path in chunk]
                features = self.encoder(torch.stack(pixels)).to("cpu", torch.float16)
                data.write(features.numpy().tobytes())
                data.flush()
                index.write("".join(f"{h}\n" for h, _ in chunk).encode("ascii"))
                index.flush()
                for h, _ in chunk:
                    self.rows[h] = len(self.rows)
        return len(missing)

    def get(self, pictures: Sequence[Path]) -> Tensor:
        """Features (P, N, D_vision) of pictures, float32; an `.npy` file is read as it is.

        Raises:
            PictureError: If a picture is not in the cache, or an array has another shape.
        """
        return torch.from_numpy(np.stack(list(self._read(pictures)))).float()

    def _read(self, pictures: Sequence[Path]) -> Iterator[np.ndarray]:
        shape = (len(self.rows), *self.shape)
        array = np.memmap(self.path, np.float16, "r", shape=shape) if self.rows else None
        for path in pictures:
            if path.is_features:
                features = np.load(path.path, allow_pickle=False)
                if features.shape != self.shape:
                    raise PictureError(f"{path} is {features.shape}, expected {self.shape}")
                yield features.astype(np.float16)
            elif array is None or self._hash(path) not in self.rows:
                raise PictureError(f"no features of {path} in {self.path}: fill the cache first")
            else:
                yield array[self.rows[self._hash(path)]]
