"""Frozen features, computed once and kept on disk, filled by any number of processes at once.

While a vision encoder is frozen and images are not augmented, its features never change, and
the encoder is most of a small model's training time. A cache belongs to one encoder with its
feature layer and preprocessing, and features are found by the content of the image's bytes, so
that neither a renamed file nor another encoder's features are ever mistaken.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.data.feature_store import FeatureStore
from isthmus.data.records import ImageRef
from isthmus.errors import ConfigError, ImageError
from isthmus.files import content_key
from isthmus.media.image import MOST_FILE_BYTES, open_image
from isthmus.media.prefetch import prefetch
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.reports.progress import Progress

HALF_MAX = 65504.0
"""The largest number that half precision holds."""


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


def cache_key(encoder: VisionEncoder) -> str:
    """What tells one encoder's features from another's, 16 hexadecimal digits.

    Its fingerprint, name, feature layer and size, and what its preprocessing makes of two
    images, which tells any preprocessing from another, a user's own function too.

    Raises:
        ConfigError: If the preprocessing makes something else of the same image each time.
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
                "the encoder's preprocessing is random, so that features of an image are not the "
                "same twice: pass another preprocess, or set train.feature_cache = false"
            )
        digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()[:16]


def decode(image: ImageRef, data: bytes) -> Image.Image:
    """An image of its bytes, as RGB.

    Raises:
        ImageError: If it is none; the message names the image.
    """
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error


class Encoding(Protocol):
    """What a cache keeps of each image: some encoder's rows.

    Attributes:
        name: The array's file name, which tells these rows from all others.
        shape: (N, D) of a row.
        dtype: Type of its numbers.
        takes_arrays: Whether an `.npy` file of that shape may stand for an image.
    """

    name: str
    shape: tuple[int, int]
    dtype: Any
    takes_arrays: bool

    def pixels(self, image: Image.Image, key: str) -> Tensor:
        """What the encoder is shown of an image; `key` is the hash of its bytes."""
        ...

    def encode(self, pixels: Tensor, images: Sequence[object]) -> Any:
        """Rows (P, N, D) as an array; ImageError if one cannot be kept."""
        ...


class PatchFeatures:
    """A frozen vision encoder's features (N, D_vision) in half precision.

    Args:
        encoder: The encoder, on any device.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        self.encoder = encoder
        self.name = f"features-{cache_key(encoder)}.f16"
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.dtype: Any = np.float16
        self.takes_arrays = True

    def pixels(self, image: Image.Image, key: str) -> Tensor:
        """The pixels of its preprocessing."""
        return self.encoder.preprocess(image)

    def encode(self, pixels: Tensor, images: Sequence[object]) -> Any:
        """As the function `encode`."""
        return encode(self.encoder, pixels, images)


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
        self._keys: dict[tuple[Path, str, int], tuple[int, int, str]] = {}

    def __contains__(self, image: ImageRef) -> bool:
        """Whether `get` has features of an image; false for one that cannot be read."""
        try:
            key = self.find(image)
        except ImageError:
            return False
        return key is None or key in self.store

    # --- Reading ----------------------------------------------------------------------------

    def get(self, images: Sequence[ImageRef]) -> Tensor:
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

    def row(self, image: ImageRef) -> int:
        """Where an image's features are in the array.

        Raises:
            ImageError: If it cannot be read, or was not filled in.
        """
        return self.store.rows[self._filled(image)]

    def _filled(self, image: ImageRef) -> str:
        key = self.find(image)
        if key is None or key not in self.store:
            decode(image, image.read())  # says what is wrong with it
            raise ImageError(f"no features of {image} in {self.path}: fill the cache first")
        return key

    def key(self, image: ImageRef) -> str:
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

    def find(self, image: ImageRef) -> str | None:
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
            raise ImageError(f"{image} is no array of NumPy's: {error}") from error
        self._check_shape(image, shape)
        return None

    def _read_array(self, image: ImageRef) -> Any:
        try:
            array = np.load(io.BytesIO(image.read()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ImageError(f"{image} is no array of NumPy's: {error}") from error
        self._check_shape(image, array.shape)
        return array

    def _check_shape(self, image: ImageRef, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ImageError(
                f"{image} is {shape}, expected {self.shape}: features of another encoder"
            )

    # --- Filling ----------------------------------------------------------------------------

    def fill(
        self,
        images: Iterable[ImageRef],
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

    def _open(self, image: ImageRef) -> _Opened:
        """An image's hash; its pixels unless its features are there; or why there are none."""
        try:
            key = self.find(image)
            if key is None or key in self.store.rows:
                return _Opened(image, key or "")
            key = content_key(data := image.read())  # of the very bytes that the pixels are of
            return _Opened(image, key, self.encoding.pixels(decode(image, data), key))
        except ImageError as error:
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


def encode(encoder: VisionEncoder, pixels: Tensor, images: Sequence[object]) -> Any:
    """Features (P, N, D_vision) of pixels (P, 3, H, W) as a float16 array, on any device.

    Args:
        encoder: The encoder.
        pixels: What its preprocessing gives, on the CPU.
        images: What to call each image in a message.

    Raises:
        ImageError: If a feature is beyond the range of half precision, or not a number.
    """
    features = encoder(pixels.to(next(encoder.parameters()).device)).float().cpu()
    largest = features.abs().flatten(1).amax(dim=1)  # NaN where there is one
    for image, value in zip(images, largest.tolist(), strict=True):
        if not value <= HALF_MAX:
            raise ImageError(
                f"{image}: a feature of size {value:g} does not fit half precision, expected at "
                f"most {HALF_MAX:g}: take another feature_layer, or set train.feature_cache = false"
            )
    return features.half().numpy()


@dataclass(frozen=True)
class _Opened:
    """An image on its way into the cache."""

    image: ImageRef
    key: str = ""
    pixels: Tensor | None = None
    why: str = ""
