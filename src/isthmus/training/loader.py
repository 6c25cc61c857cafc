"""Attachments of samples, as the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps

from isthmus.data.features import FeatureCache
from isthmus.data.piece_cache import PieceCache
from isthmus.data.records import Medium as Source
from isthmus.data.records import frames
from isthmus.errors import ImageError, MediaError
from isthmus.media.image import decode
from isthmus.media.kinds import kind_of
from isthmus.model.media.base import Attachment, Features, Medium, medium_of
from isthmus.model.vlm import VisionLanguageModel

Augment = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Makes another image of an image, with nothing random but the generator."""


class MediaLoader:
    """Attachments as the model takes them: cached features, or opened by their medium.

    Args:
        model: Its media.
        caches: Features computed before, by the name of their medium.
        seed: Of random crops of images; None for no augmentation.
        augment: What makes them.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        caches: Mapping[str, FeatureCache | PieceCache] | None = None,
        seed: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.model = model
        self.caches = caches or {}
        self.seed = seed
        self.augment = augment or augmented
        self._remedies: dict[str, str] = {}

    def load(self, media: Sequence[Source], number: int) -> tuple[Attachment, ...]:
        """The attachments of one sample.

        Args:
            media: Where they are.
            number: The sample's number, which decides random crops.

        Raises:
            MediaError: If one cannot be opened.
            PromptError: If the model has no medium for one.
        """
        found: list[Attachment] = []
        place = 0
        for source in media:
            found.append(self._loaded(source, number, place))
            place += len(frames(source))
        return tuple(found)

    def _loaded(self, source: Source, number: int, place: int) -> Attachment:
        medium = medium_of(self.model, source)
        cache = self.caches.get(medium.name)
        if isinstance(cache, PieceCache):
            [file] = frames(source)
            return Features(medium.name, *cache.get(file))
        if cache is not None:
            rows = cache.get(frames(source))
            return Features(medium.name, rows if isinstance(source, tuple) else rows[0])
        for file in frames(source):
            if file.is_features:
                kind = ImageError if file.kind == "image" else MediaError
                raise kind(f"{file} holds features{self._remedy(medium)}")
        if self.seed is None or kind_of(source) not in ("image", "clip"):
            return medium.open(self.model, source)
        shown = []
        for at, file in enumerate(frames(source), place):
            generator = np.random.default_rng([self.seed, 2, number, at])
            shown.append(self.augment(decode(file, file.read()), generator))
        return medium.open(self.model, shown if isinstance(source, tuple) else shown[0])

    def _remedy(self, medium: Medium) -> str:
        """What to do with a file of features, of which some media have no use."""
        if medium.name not in self._remedies:
            encoding = None if medium.varies else medium.encoding(self.model)
            self._remedies[medium.name] = (
                ": they are read through the feature cache; set train.feature_cache = true and "
                "train.augment = false"
                if encoding is not None and encoding.takes_arrays
                else f', and the medium "{medium.name}" reads none: expected what they are of'
            )
        return self._remedies[medium.name]


def augmented(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A random crop of at least 60% of the area, mirrored half of the time."""
    share = generator.uniform(0.6, 1.0) ** 0.5
    width, height = image.size
    w, h = max(1, round(width * share)), max(1, round(height * share))
    left = int(generator.integers(width - w + 1))
    top = int(generator.integers(height - h + 1))
    crop = image.crop((left, top, left + w, top + h))
    return ImageOps.mirror(crop) if generator.random() < 0.5 else crop
