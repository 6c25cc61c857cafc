"""Vectors of locked encoders, computed once and kept on disk: training then runs the heads alone.

A file belongs to one encoder, its pooling and its preprocessing; for images also to the random
crops that were asked for. Vectors are fp32: a step on them is the step on images and texts.

Letters: P images, V views, K texts, D width of an encoder's vectors.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.data.feature_store import FeatureStore
from isthmus.errors import ImageError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import JoinedImageTower, JoinedTextTower
from isthmus.model.features import cache_key
from isthmus.reports.progress import tracked
from isthmus.training.loader import Augment
from isthmus.training.processes import Processes

TEXTS_AT_ONCE = 4096


def view_of(image: Image.Image, view: int, key: str, augment: Augment, seed: int) -> Image.Image:
    """A version of an image: 0 is itself, others are always the same for one seed.

    Args:
        image: The image.
        view: Which version.
        key: Hash of its bytes.
        augment: What makes versions.
        seed: The run's.
    """
    if view == 0:
        return image
    return augment(image, np.random.default_rng([seed, view, int(key[:16], 16)]))


class PooledViews:
    """Pooled vectors (V, D) of an image and of its views under a locked image tower, in fp32.

    Args:
        tower: The tower, on any device.
        views: Versions of each image.
        augment: What makes them.
        seed: The run's.
    """

    def __init__(self, tower: JoinedImageTower, views: int, augment: Augment, seed: int) -> None:
        self.tower, self.augment, self.seed = tower, augment, seed
        self.shape = (views, tower.pooled_width)
        self.dtype: Any = np.float32
        self.takes_arrays = False
        told = f"{cache_key(tower.encoder)} {tower.pooling} {views}"
        if tower.mixture is not None:
            told += " classes"
        if views > 1:
            probe = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
            crop = view_of(probe, 1, "0" * 32, augment, seed)
            told += f" {crop.size} {hashlib.sha256(crop.tobytes()).hexdigest()}"
        self.name = f"pooled-{hashlib.sha256(told.encode()).hexdigest()[:16]}.f32"

    def open(self, file: FileRef, data: bytes, key: str) -> Tensor:
        """Pixels (V, 3, H, W) of an image's views."""
        image = decode(file, data)
        views = (view_of(image, v, key, self.augment, self.seed) for v in range(self.shape[0]))
        return torch.stack([self.tower.encoder.preprocess(view) for view in views])

    @torch.no_grad()
    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        """Vectors (P, V, D) of pixels (P, V, 3, H, W).

        Raises:
            ImageError: If one is not finite.
        """
        device = next(self.tower.encoder.parameters()).device
        pooled = self.tower.pool(opened.flatten(0, 1).to(device)).float().cpu()
        found = pooled.view(len(opened), *self.shape)
        for file, fine in zip(files, found.flatten(1).isfinite().all(1), strict=True):
            if not fine:
                raise ImageError(f"{file}: its features are not finite")
        return found.numpy()


class TextCache:
    """Vectors of texts under a locked text tower.

    Args:
        folder: Where files live.
        model: The dual encoder, its text tower a joined one.
    """

    def __init__(self, folder: str | Path, model: DualEncoder) -> None:
        tower = model.text
        assert isinstance(tower, JoinedTextTower)
        self.model, self.tower = model, tower
        told = f"{fingerprint(tower.encoder.model)} {tower.encoder.config}"
        told += f" {tower.token_ids(['a photo of a cat.', 'An_ODD-one: 42'])}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        path = Path(folder) / f"texts-{key}.f32"
        self.store = FeatureStore(path, (1, tower.head.linear.in_features), np.float32)

    def fill(self, texts: Sequence[str], processes: Processes, *, quiet: bool = False) -> None:
        """Computes the vectors that are missing, each process its share.

        Args:
            texts: Distinct ones, the same in every process.
            processes: Those that share the work.
            quiet: No progress bar.

        Raises:
            PromptError: If a text has more tokens than the encoder reads.
        """
        self.store.refresh()
        missing = [t for t in texts if key_of(t) not in self.store.rows]
        own = missing[processes.rank :: processes.count]
        parts = [own[i : i + TEXTS_AT_ONCE] for i in range(0, len(own), TEXTS_AT_ONCE)]
        for part in tracked(parts, "Texts", quiet=quiet or not parts):
            places, vectors = [], []
            with torch.no_grad():
                for many, found in self.model.passes(self.model.rows(part), self.tower.encode):
                    places += many
                    vectors.append(found.float().cpu())
            keys = [key_of(part[place]) for place in places]
            self.store.append(keys, torch.cat(vectors)[:, None].numpy())
        processes.wait()
        self.store.refresh()

    def get(self, texts: Sequence[str]) -> Tensor:
        """Vectors (K, D) of texts that were filled in."""
        rows = np.array([self.store.rows[key_of(text)] for text in texts])
        return torch.from_numpy(self.store.gather(rows, np.zeros_like(rows)))


@functools.lru_cache(maxsize=1 << 20)
def key_of(text: str) -> str:
    """SHA-256 of a text, 32 hexadecimal digits of it."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
