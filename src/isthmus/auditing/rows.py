"""Rows of numbers that belong to images, computed once for each image.

Letters: n images, D numbers each.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from isthmus.errors import InputError
from isthmus.media.image import Source, content_hash

MOST_ROWS = 50_000
"""Rows that are kept; the least recently used go first."""


class Rows:
    """Remembers a row (D,) for each image that was seen.

    A file is known by its path, size and time of change; bytes and PIL images by their content.

    Args:
        most: Rows that are kept.

    Attributes:
        computed: Images that were computed so far.

    Example:
        >>> from PIL import Image
        >>> rows, image = Rows(), Image.new("RGB", (2, 2))
        >>> found = rows.of([image, image.copy()], lambda images: torch.zeros(len(images), 3))
        >>> found.shape, rows.computed
        (torch.Size([2, 3]), 1)
    """

    def __init__(self, most: int = MOST_ROWS) -> None:
        self.most = most
        self.computed = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def of(self, images: Sequence[Source], compute: Callable[[Sequence[Source]], Tensor]) -> Tensor:
        """The rows (n, D) of images, those that are new computed together.

        Args:
            images: Anything that `open_image` takes.
            compute: From different images to their rows.

        Raises:
            InputError: If it is one image and no list, or an empty list.
            ImageError: If an image cannot be read.
        """
        if isinstance(images, str | bytes | Path) or not hasattr(images, "__len__"):
            raise InputError("got one image: expected a list of images")
        if not len(images):
            raise InputError("got no images: expected at least one")
        sources = [reopenable(image) for image in images]
        keys = [_key(source) for source in sources]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {k: s for k, s in zip(keys, sources, strict=True) if k not in found}
        if missing:
            rows = compute(list(missing.values()))
            self.computed += len(missing)
            # copies, so that a row that is kept does not keep those beside it
            found |= {key: row.clone() for key, row in zip(missing, rows, strict=True)}
        for key in dict.fromkeys(keys):
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def reopenable(source: Source) -> Source:
    """An image that can be opened again and again: an open file becomes its bytes.

    The file stays where it stood, if it can be rewound.
    """
    if isinstance(source, str | os.PathLike | bytes | Image.Image):
        return source
    if not hasattr(source, "read"):
        return source  # `open_image` says what is wrong with it
    place = source.tell() if source.seekable() else None
    data = source.read()
    if place is not None:
        source.seek(place)
    return data


def _key(source: Source) -> Hashable:
    if isinstance(source, str | os.PathLike):
        path = os.path.abspath(source)
        try:
            told = os.stat(path)
        except (OSError, ValueError):  # whoever opens it says what is wrong
            return path
        return path, told.st_size, told.st_mtime_ns
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return content_hash(source)
