"""Frozen features as a cache keeps them: whose they are, and what is kept of each attachment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError, ImageError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.backbones.vision import VisionEncoder

HALF_MAX = 65504.0
"""The largest number that half precision holds."""
ALWAYS_TOLD = ("name", "feature_layer", "keep_cls", "resize")
"""Options of an encoder that its key has always held, also where they are at their defaults."""


class Encoding(Protocol):
    """What a feature cache keeps of each attachment: some encoder's rows.

    Attributes:
        name: The array's file name, which tells these rows from all others.
        shape: (N, D) of a row.
        dtype: Type of its numbers.
        takes_arrays: Whether an `.npy` file of that shape may stand for an attachment.
    """

    name: str
    shape: tuple[int, int]
    dtype: Any
    takes_arrays: bool

    def open(self, file: FileRef, data: bytes, key: str) -> Tensor:
        """What the encoder is shown of a file.

        Args:
            file: The file.
            data: Its bytes.
            key: Their hash.

        Raises:
            MediaError: If it cannot be opened.
        """
        ...

    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        """Rows (P, N, D) as an array, of what `open` made of files.

        Raises:
            MediaError: If one cannot be kept.
        """
        ...


class PieceEncoding(Protocol):
    """What a cache keeps of attachments in pieces, such as images in tiles: a row for each piece.

    Attributes:
        name, shape, dtype: As in `Encoding`.
    """

    name: str
    shape: tuple[int, int]
    dtype: Any

    def open(self, file: FileRef, data: bytes, key: str) -> tuple[Tensor, tuple[int, ...]]:
        """What the encoder is shown of a file, (T, ...), and what is told of it.

        Raises:
            MediaError: If it cannot be opened.
        """
        ...

    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        """Rows (T, N, D) as an array, of what `open` made of a file.

        Raises:
            MediaError: If one cannot be kept.
        """
        ...


class PatchFeatures:
    """A frozen vision encoder's features (N, D_vision) in half precision.

    Args:
        encoder: The encoder, on any device.

    Raises:
        ConfigError: If the number of its features varies with the image.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        if encoder.varies:
            raise ConfigError(
                f"{encoder.config.name} reads images at their own resolution, and their features "
                "fit no array of one shape: leave the cache of features out, or pass "
                'resize="squash"'
            )
        self.encoder = encoder
        self.name = f"features-{cache_key(encoder)}.f16"
        self.shape = (encoder.shape.tokens, encoder.shape.width)
        self.dtype: Any = np.float16
        self.takes_arrays = True

    def open(self, file: FileRef, data: bytes, key: str) -> Tensor:
        """The pixels of its preprocessing."""
        return self.encoder.preprocess(decode(file, data))

    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        """Features (P, N, D_vision) of pixels (P, 3, H, W)."""
        return in_half(self.encoder(opened.to(next(self.encoder.parameters()).device)), files)


def in_half(features: Tensor, files: Sequence[object]) -> Any:
    """Features as a float16 array, for `Encoding.encode`.

    Args:
        features: (P, N, D), on any device.
        files: What to call each in a message.

    Raises:
        ImageError: If a feature is beyond the range of half precision, or not a number.

    Example:
        >>> in_half(torch.ones(1, 2, 3), ["a.jpg"]).dtype
        dtype('float16')
    """
    features = features.float().cpu()
    largest = features.abs().flatten(1).amax(dim=1)  # NaN where there is one
    for file, value in zip(files, largest.tolist(), strict=True):
        if not value <= HALF_MAX:
            raise ImageError(
                f"{file}: a feature of size {value:g} does not fit half precision, expected at "
                f"most {HALF_MAX:g}: take another feature_layer, or set train.feature_cache = false"
            )
    return features.half().numpy()


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
        f"{fingerprint(encoder.model)} {_told(encoder.config)} {encoder.image_size}".encode()
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


def _told(config: VisionConfig) -> str:
    """A configuration as keys hold it.

    Options that came later stand in it only where they are set, so that a new one leaves the keys
    of all caches as they were.
    """
    values = {f.name: (getattr(config, f.name), f.default) for f in fields(config)}
    told = [
        f"{name}={value!r}"
        for name, (value, default) in values.items()
        if name in ALWAYS_TOLD or value != default
    ]
    return f"VisionConfig({', '.join(told)})"
