"""Visual tokens, each image encoded once, found again by its content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.media.image import open_image
from isthmus.model.medium import medium_of, visual_of
from isthmus.model.vlm import VisionLanguageModel

ENCODED_AT_ONCE = 16


def content_of(source: Any) -> tuple[str, Any]:
    """An image's content as a hash, and the image in a form that can still be opened.

    Args:
        source: A path, the bytes of a file, a binary file, a PIL image, or pixels.

    Raises:
        ImageError: If it is a file that cannot be read.

    Example:
        >>> content_of(b"abc")[0][:8]
        'ba7816bf'
    """
    if isinstance(source, (str, Path)) and Path(source).is_file():
        source = Path(source).read_bytes()
    if isinstance(source, (bytes, bytearray)):
        return hashlib.sha256(source).hexdigest(), source
    if isinstance(source, Tensor):
        raw = source.detach().float().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(repr(tuple(source.shape)).encode() + raw).hexdigest(), source
    image = open_image(source)
    head = f"{image.mode} {image.size} ".encode()
    # a PIL image itself, no copy of it; a file can be read only once
    kept = source if isinstance(source, Image.Image) else image
    return hashlib.sha256(head + image.tobytes()).hexdigest(), kept


class VisualTokens:
    """Visual tokens (M, D_visual) of images by the hash of their content.

    Args:
        model: Encodes and connects.
        memory: Most bytes kept; the least recently used go first.

    Attributes:
        encoded: Images that were encoded.
        found: Images that were there already.
        bytes: Bytes kept.
    """

    def __init__(self, model: VisionLanguageModel, memory: int) -> None:
        self.model = model
        self.memory = memory
        self.encoded = self.found = self.bytes = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, images: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
        """Visual tokens of images as `content_of` gives them, by their hashes."""
        wanted = dict(images)
        missing = [key for key in wanted if key not in self._kept]
        self.encoded += len(missing)
        self.found += len(wanted) - len(missing)
        result = {}
        for key in wanted:
            if key in self._kept:
                self._kept.move_to_end(key)
                result[key] = self._kept[key]
        for i in range(0, len(missing), ENCODED_AT_ONCE):
            keys = missing[i : i + ENCODED_AT_ONCE]
            sources = [wanted[key] for key in keys]
            opened = [medium_of(self.model, s).open(self.model, s) for s in sources]
            for key, tokens in zip(keys, visual_of(self.model, opened), strict=True):
                result[key] = self._kept[key] = tokens.clone()
                self.bytes += tokens.numel() * tokens.element_size()
        while self.bytes > self.memory and self._kept:
            _, tokens = self._kept.popitem(last=False)
            self.bytes -= tokens.numel() * tokens.element_size()
        return result
