"""Frozen features, computed once and kept on disk, filled by any number of processes at once.

While a vision encoder is frozen and pictures are not augmented, its features never change, and
the encoder is most of a small model's training time. A cache belongs to one encoder with its
feature layer and preprocessing, and features are found by the content of the picture's bytes, so
that neither a renamed file nor another encoder's features are ever mistaken.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from isthmus.backbones.fingerprint import fingerprint
from isthmus.backbones.vision import VisionEncoder
from isthmus.data.feature_store import FeatureStore, share_of
from isthmus.data.prefetch import prefetch
from isthmus.data.records import Picture
from isthmus.errors import ConfigError, PictureError
from isthmus.images import MOST_FILE_BYTES, open_picture

HALF_MAX = 65504.0
"""The largest number that half precision holds."""
WINDOW = 1024
"""Pictures without features that are gathered before work on them begins."""


@dataclass(frozen=True)
class FillReport:
    """What became of the pictures that a cache was filled with.

    Attributes:
        computed: Pictures whose features were computed.
        present: Pictures that needed no work: there before, the same bytes, computed by another
            process meanwhile, or features in an `.npy` file.
        broken: Name and reason for each picture that cannot be read.
    """

    computed: int = 0
    present: int = 0
    broken: tuple[tuple[str, str], ...] = ()


def cache_key(encoder: VisionEncoder) -> str:
    """What tells one encoder's features from another's, 16 hexadecimal digits.

    Its fingerprint, name, feature layer and size, and what its preprocessing makes of two
    pictures, which tells any preprocessing from another, a user's own function too.

    Raises:
        ConfigError: If the preprocessing makes something else of the same picture each time.
    """
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    ramp = np.add.outer(np.arange(300), np.arange(180)[:, None] * np.arange(1, 4)) % 256
    probes = [Image.fromarray(a) for a in (noise, ramp.astype(np.uint8))]
    digest = hashlib.sha256(
        f"{fingerprint(encoder.model)} {encoder.config} {encoder.image_size}".encode()
    )
    for probe in probes:
        pixels, again = (encoder.preprocess(probe).float().cpu() for _ in range(2))
        if not torch.equal(pixels, again):
            raise ConfigError(
                "the encoder's preprocessing is random, so that features of a picture are not the "
                "same twice: pass another preprocess, or set train.feature_cache = false"
            )
        digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()[:16]


def decode(picture: Picture, data: bytes) -> Image.Image:
    """A picture of its bytes, as RGB.

    Raises:
        PictureError: If it is none; the message names the picture.
    """
    try:
        return open_picture(data)
    except PictureError as error:
        raise PictureError(f"{picture}: {error}") from error


class FeatureCache:
    """Features of pictures under one encoder, as a memory-mapped half-precision array.

    Any number of processes may fill and read one folder at once. Threads may share a cache for
    reading; it is filled by one.

    Args:
        folder: Where the cache lives; shared by all encoders.
        encoder: The frozen encoder, on any device.

    Attributes:
        path: The array of shape (rows, N, D_vision), float16.
        store: That file and its index.

    Example:
        >>> cache = FeatureCache("features", model.vision)  # doctest: +SKIP
        >>> cache.fill(pictures).computed  # doctest: +SKIP
        2
        >>> cache.get(pictures).shape  # doctest: +SKIP
        torch.Size([2, 81, 1280])
    """

    def __init__(self, folder: str | Path, encoder: VisionEncoder) -> None:
        self.encoder = encoder
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.path = Path(folder) / f"features-{cache_key(encoder)}.f16"
        self.store = FeatureStore(self.path, self.shape)
        self._keys: dict[tuple[Path, str, int], tuple[int, int, str]] = {}

    def __contains__(self, picture: Picture) -> bool:
        """Whether `get` has features of a picture; false for one that cannot be read."""
        try:
            key = self.find(picture)
        except PictureError:
            return False
        return key is None or key in self.store

    # --- Reading ----------------------------------------------------------------------------

    def get(self, pictures: Sequence[Picture]) -> Tensor:
        """Features (P, N, D_vision) of pictures, float32; an `.npy` file is read as it is.

        Raises:
            PictureError: If a picture cannot be read or is not in the cache, or an array has
                another shape.
        """
        found = np.empty((len(pictures), *self.shape), np.float32)
        for i, picture in enumerate(pictures):
            if picture.is_features:
                found[i] = self._read_array(picture)
                continue
            if (key := self.key(picture)) not in self.store:
                raise PictureError(f"no features of {picture} in {self.path}: fill the cache first")
            found[i] = self.store[key]
        return torch.from_numpy(found)

    def key(self, picture: Picture) -> str:
        """SHA-256 of a picture's bytes, 32 hexadecimal digits of it.

        A file is hashed again only when its size or time of change is another.

        Raises:
            PictureError: If it cannot be read, or is too large to be a picture.
        """
        if picture.data is not None:
            return _hash(picture.data)
        try:
            state = picture.path.stat()
        except OSError as error:
            raise PictureError(f"cannot read {picture}: {error.strerror or error}") from error
        place = (picture.path, picture.member, picture.start)
        size, changed, key = self._keys.get(place, (-1, -1, ""))
        if (size, changed) == (state.st_size, state.st_mtime_ns):
            return key
        if (state.st_size if picture.size is None else picture.size) > MOST_FILE_BYTES:
            limit = MOST_FILE_BYTES // 1_000_000
            raise PictureError(f"{picture} has more than {limit} MB: expected a picture")
        key = _hash(picture.read())
        self._keys[place] = (state.st_size, state.st_mtime_ns, key)
        return key

    def find(self, picture: Picture) -> str | None:
        """As `key`; None for features in an `.npy` file, whose shape is checked.

        Raises:
            PictureError: If it cannot be read, or is an array of another shape.
        """
        if not picture.is_features:
            return self.key(picture)
        head = io.BytesIO(replace(picture, size=min(picture.size or 1024, 1024)).read())
        try:
            version = np.lib.format.read_magic(head)
            old = np.lib.format.read_array_header_1_0
            shape = (old if version == (1, 0) else np.lib.format.read_array_header_2_0)(head)[0]
        except ValueError as error:
            raise PictureError(f"{picture} is no array of NumPy's: {error}") from error
        self._check_shape(picture, shape)
        return None

    def _read_array(self, picture: Picture) -> Any:
        try:
            array = np.load(io.BytesIO(picture.read()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise PictureError(f"{picture} is no array of NumPy's: {error}") from error
        self._check_shape(picture, array.shape)
        return array

    def _check_shape(self, picture: Picture, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise PictureError(
                f"{picture} is {shape}, expected {self.shape}: features of another encoder"
            )

    # --- Filling ----------------------------------------------------------------------------

    def fill(
        self,
        pictures: Iterable[Picture],
        *,
        quiet: bool = False,
        batch_size: int = 16,
        workers: int = 2,
    ) -> FillReport:
        """Computes the features that are missing, with a progress bar.

        Processes that fill one folder at once share the work: none computes what another has
        computed or is computing. Memory does not grow with the number of pictures, but for the
        hashes.

        Args:
            pictures: The pictures, in any order; the same one may come again.
            quiet: No progress bar.
            batch_size: Pictures in one pass of the encoder; each is appended at once.
            workers: Threads that open pictures ahead of the encoder.

        Returns:
            How many were computed and how many were there. A picture that cannot be read is
            skipped and listed.

        Raises:
            PictureError: If a feature is too large for half precision, or not finite; what was
                computed before is kept.
        """
        total = len(pictures) if isinstance(pictures, Sized) else None
        self.store.refresh()
        with Progress(console=Console(stderr=True), disable=quiet) as bar:
            tally = _Tally(bar, bar.add_task("Features", total=total))
            window: dict[str, Picture] = {}
            ahead = 2 * max(batch_size, workers)
            with closing(prefetch(pictures, self._look, workers=workers, ahead=ahead)) as found:
                for picture, key, why in found:
                    if why:
                        tally.add(broken=(str(picture), why))
                    elif key is None or key in self.store.rows or key in window:
                        tally.add(present=1)
                    else:
                        window[key] = picture
                        if len(window) == WINDOW:
                            self._fill_window(window, tally, batch_size, workers)
                            window = {}
            self._fill_window(window, tally, batch_size, workers)
        return FillReport(tally.computed, tally.present, tuple(tally.broken))

    def pixels(self, picture: Image.Image, key: str) -> Tensor:
        """What the encoder is shown of a picture; `key` is the hash of its bytes."""
        return self.encoder.preprocess(picture)

    def encode(self, pixels: Tensor, pictures: Sequence[object]) -> Any:
        """Rows (P, N, D_vision) of what `pixels` gave; PictureError if one cannot be kept."""
        return encode(self.encoder, pixels, pictures)

    def _look(self, picture: Picture) -> tuple[Picture, str | None, str]:
        try:
            return picture, self.find(picture), ""
        except PictureError as error:
            return picture, None, str(error)

    def _fill_window(
        self, window: dict[str, Picture], tally: _Tally, batch_size: int, workers: int
    ) -> None:
        """Computes some pictures' features, sharing them with other processes.

        Claims are taken as pictures are drawn, never waited for while others are held, so that
        no two processes wait for each other; those of other processes are looked at again when
        there is nothing else to do.
        """
        shares: dict[int, dict[str, Picture]] = {}
        for key, picture in window.items():
            shares.setdefault(share_of(key), {})[key] = picture
        while shares:
            held: dict[int, BaseFileLock] = {}
            try:
                drawn = self._draw(shares, held, tally)
                work = prefetch(drawn, self._open, workers=workers, ahead=2 * batch_size)
                with closing(work):
                    batch: list[_Opened] = []
                    for opened in work:
                        if opened.why:
                            tally.add(broken=(str(opened.picture), opened.why))
                            continue
                        batch.append(opened)
                        if len(batch) == batch_size:
                            self._encode(batch, tally)
                            for claim in list(held)[: list(held).index(opened.claim)]:
                                held.pop(claim).release()  # pictures come claim by claim
                            batch = []
                    self._encode(batch, tally)
            finally:
                for lock in held.values():
                    lock.release()
            if shares:
                with self.store.claim(next(iter(shares))):
                    pass

    def _draw(
        self, shares: dict[int, dict[str, Picture]], held: dict[int, BaseFileLock], tally: _Tally
    ) -> Iterator[_Opened]:
        """The pictures of each claim that is free, taking it; it leaves `shares` for `held`."""
        order = sorted(shares)
        first = os.getpid() % len(order)  # processes begin at different ones
        for claim in order[first:] + order[:first]:
            lock = self.store.claim(claim)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            held[claim] = lock
            self.store.refresh()
            for key, picture in shares.pop(claim).items():
                if key in self.store.rows:
                    tally.add(present=1)
                else:
                    yield _Opened(picture, claim, key)

    def _open(self, drawn: _Opened) -> _Opened:
        """Adds the pixels, or why there are none, and the hash of the very bytes they are of."""
        try:
            key = _hash(data := drawn.picture.read())
            return replace(drawn, key=key, pixels=self.pixels(decode(drawn.picture, data), key))
        except PictureError as error:
            return replace(drawn, why=str(error))

    def _encode(self, batch: Sequence[_Opened], tally: _Tally) -> None:
        if batch:
            pixels = torch.stack([b.pixels for b in batch if b.pixels is not None])
            keys, pictures = [b.key for b in batch], [b.picture for b in batch]
            self.store.append(keys, self.encode(pixels, pictures))
            tally.add(computed=len(batch))


def encode(encoder: VisionEncoder, pixels: Tensor, pictures: Sequence[object]) -> Any:
    """Features (P, N, D_vision) of pixels (P, 3, H, W) as a float16 array, on any device.

    Args:
        encoder: The encoder.
        pixels: What its preprocessing gives, on the CPU.
        pictures: What to call each picture in a message.

    Raises:
        PictureError: If a feature is beyond the range of half precision, or not a number.
    """
    features = encoder(pixels.to(next(encoder.parameters()).device)).float().cpu()
    largest = features.abs().flatten(1).amax(dim=1)  # NaN where there is one
    for picture, value in zip(pictures, largest.tolist(), strict=True):
        if not value <= HALF_MAX:
            raise PictureError(
                f"{picture}: a feature of size {value:g} does not fit half precision, expected at "
                f"most {HALF_MAX:g}: take another feature_layer, or set train.feature_cache = false"
            )
    return features.half().numpy()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class _Opened:
    """A picture on its way into the cache."""

    picture: Picture
    claim: int
    key: str
    pixels: Tensor | None = None
    why: str = ""


@dataclass
class _Tally:
    """Counts what was done, and moves the progress bar."""

    bar: Progress
    task: Any
    computed: int = 0
    present: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)

    def add(
        self, computed: int = 0, present: int = 0, broken: tuple[str, str] | None = None
    ) -> None:
        self.computed += computed
        self.present += present
        if broken is not None:
            self.broken.append(broken)
        self.bar.advance(self.task, computed + present + (broken is not None))
