"""Frozen features, computed once and kept on disk, filled by any number of processes at once.

While a vision encoder is frozen and images are not augmented, its features never change, and
the encoder is most of a small model's training time. A cache belongs to one encoder with its
feature layer and preprocessing, and features are found by the content of the image's bytes, so
that neither a renamed file nor another encoder's features are ever mistaken.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.data.feature_store import FeatureStore
from isthmus.errors import ImageError, MediaError
from isthmus.files import content_key
from isthmus.media.file_ref import FileRef
from isthmus.media.image import MOST_FILE_BYTES
from isthmus.media.prefetch import prefetch
from isthmus.model.features import Encoding
from isthmus.reports.progress import Progress


@dataclass(frozen=True)
class FillReport:
    """What became of the images that a cache was filled with.

    Attributes:
        computed: Images whose features were computed.
        present: Images that needed no work: there before, the same bytes, computed by another
            process meanwhile, or features in an `.npy` file.
        broken: Name and reason for each image that cannot be read.
    """

    computed: int = 0
    present: int = 0
    broken: tuple[tuple[str, str], ...] = ()


class ContentKeys:
    """The hashes of images' bytes, by which their features are found."""

    def __init__(self) -> None:
        self._keys: dict[tuple[Path, str, int], tuple[int, int, str]] = {}

    def __call__(self, image: FileRef) -> str:
        """SHA-256 of an image's bytes, 32 hexadecimal digits of it.

        A file is hashed again only when its size or time of change is another.

        Raises:
            ImageError: If it cannot be read, or is too large to be an image.
        """
        if image.data is not None:
            return content_key(image.data)
        try:
            state = image.path.stat()
        except OSError as error:
            raise ImageError(f"cannot read {image}: {error.strerror or error}") from error
        place = (image.path, image.member, image.start)
        size, changed, key = self._keys.get(place, (-1, -1, ""))
        if (size, changed) == (state.st_size, state.st_mtime_ns):
            return key
        if (state.st_size if image.size is None else image.size) > MOST_FILE_BYTES:
            limit = MOST_FILE_BYTES // 1_000_000
            raise ImageError(f"{image} has more than {limit} MB: expected an image")
        key = content_key(image.read())
        self._keys[place] = (state.st_size, state.st_mtime_ns, key)
        return key


class FeatureCache:
    """Rows of images under one encoding, as a memory-mapped array, found by the images' content.

    Any number of processes may fill and read one folder at once: files are never torn, and what
    two of them compute at the same time is kept once. Processes of one run divide the images among
    them. Threads may share a cache for reading; it is filled by one.

    Args:
        folder: Where the cache lives; shared by all encodings.
        encoding: What is kept of each image: `PatchFeatures(model.vision)`.

    Attributes:
        path: The array of shape (rows, N, D).
        store: That file and its index.

    Example:
        >>> cache = FeatureCache("features", PatchFeatures(model.vision))  # doctest: +SKIP
        >>> cache.fill(images).computed  # doctest: +SKIP
        2
        >>> cache.get(images).shape  # doctest: +SKIP
        torch.Size([2, 81, 1280])
    """

    def __init__(self, folder: str | Path, encoding: Encoding) -> None:
        self.encoding, self.shape = encoding, encoding.shape
        self.path = Path(folder) / encoding.name
        self.store = FeatureStore(self.path, self.shape, encoding.dtype)
        self.key = ContentKeys()

    def __contains__(self, image: FileRef) -> bool:
        """Whether `get` has features of an image; false for one that cannot be read."""
        try:
            key = self.find(image)
        except MediaError:
            return False
        return key is None or key in self.store

    # --- Reading ----------------------------------------------------------------------------

    def get(self, images: Sequence[FileRef]) -> Tensor:
        """Features (P, N, D) of images, float32; an `.npy` file is read as it is.

        Raises:
            ImageError: If an image cannot be read or is not in the cache, or an array has
                another shape.
        """
        found = np.empty((len(images), *self.shape), np.float32)
        for i, image in enumerate(images):
            if image.is_features and self.encoding.takes_arrays:
                found[i] = self._read_array(image)
            else:
                found[i] = self.store[self._filled(image)]
        return torch.from_numpy(found)

    def row(self, image: FileRef) -> int:
        """Where an image's features are in the array.

        Raises:
            ImageError: If it cannot be read, or was not filled in.
        """
        return self.store.rows[self._filled(image)]

    def _filled(self, image: FileRef) -> str:
        key = self.find(image)
        if key is None or key not in self.store:
            self.encoding.open(image, image.read(), key or "")  # says what is wrong with it
            raise ImageError(f"no features of {image} in {self.path}: fill the cache first")
        return key

    def find(self, image: FileRef) -> str | None:
        """As `key`; None for features in an `.npy` file, whose shape is checked.

        Raises:
            ImageError: If it cannot be read, or is an array of another shape, or one where the
                encoding takes images alone.
        """
        if not image.is_features:
            return self.key(image)
        if not self.encoding.takes_arrays:
            raise ImageError(f"{image} holds features: expected an image")
        head = io.BytesIO(replace(image, size=min(image.size or 1024, 1024)).read())
        try:
            version = np.lib.format.read_magic(head)
            old = np.lib.format.read_array_header_1_0
            shape = (old if version == (1, 0) else np.lib.format.read_array_header_2_0)(head)[0]
        except ValueError as error:
            raise ImageError(f"{image} is not a NumPy array: {error}") from error
        self._check_shape(image, shape)
        return None

    def _read_array(self, image: FileRef) -> Any:
        try:
            array = np.load(io.BytesIO(image.read()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ImageError(f"{image} is not a NumPy array: {error}") from error
        self._check_shape(image, array.shape)
        return array

    def _check_shape(self, image: FileRef, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ImageError(
                f"{image} is {shape}, expected {self.shape}: features of another encoder"
            )

    # --- Filling ----------------------------------------------------------------------------

    def fill(
        self,
        images: Iterable[FileRef],
        *,
        quiet: bool = False,
        batch_size: int = 16,
        workers: int = 2,
    ) -> FillReport:
        """Computes the features that are missing, and shows progress.

        Memory does not grow with the number of images, but for the hashes.

        Args:
            images: The images, in any order; the same one may come again.
            quiet: Show no progress.
            batch_size: Images in one pass of the encoder; each is appended at once.
            workers: Threads that open images ahead of the encoder.

        Returns:
            How many were computed and how many were there. An image that cannot be read is
            skipped and listed.

        Raises:
            ImageError: If a feature is too large for half precision, or not finite; what was
                computed before is kept.
        """
        total = len(images) if isinstance(images, Sized) else None
        computed = 0
        broken: list[tuple[str, str]] = []
        batch: dict[str, _Opened] = {}
        self.store.refresh()
        opened = prefetch(images, self._open, workers=workers, ahead=2 * max(batch_size, workers))
        with Progress("Features", total, unit="images", quiet=quiet) as progress, closing(opened):
            for one in opened:
                if one.why:
                    broken.append((str(one.image), one.why))
                elif one.pixels is not None and one.key not in self.store.rows:
                    batch.setdefault(one.key, one)
                if len(batch) == batch_size:
                    computed += self._encode(batch)
                    batch.clear()
                progress.advance()
            computed += self._encode(batch)
        return FillReport(computed, progress.done - computed - len(broken), tuple(broken))

    def _open(self, image: FileRef) -> _Opened:
        """An image's hash; its pixels unless its features are there; or why there are none."""
        try:
            key = self.find(image)
            if key is None or key in self.store.rows:
                return _Opened(image, key or "")
            key = content_key(data := image.read())  # of the very bytes that the pixels are of
            return _Opened(image, key, self.encoding.open(image, data, key))
        except MediaError as error:
            return _Opened(image, why=str(error))

    def _encode(self, batch: Mapping[str, _Opened]) -> int:
        """Computes and appends features that no other process has appended; how many."""
        there = self.store.refresh()
        missing = [one for key, one in batch.items() if key not in there]
        if missing:
            pixels = torch.stack([one.pixels for one in missing if one.pixels is not None])
            rows = self.encoding.encode(pixels, [one.image for one in missing])
            self.store.append([one.key for one in missing], rows)
        return len(missing)


@dataclass(frozen=True)
class _Opened:
    """An image on its way into the cache."""

    image: FileRef
    key: str = ""
    pixels: Tensor | None = None
    why: str = ""
