"""Visual tokens, each image encoded once, found again by its content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.errors import ImageError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import open_image
from isthmus.media.kinds import reference
from isthmus.model.media.base import Opened, medium_of, visual_of
from isthmus.model.vlm import VisionLanguageModel

ENCODED_AT_ONCE = 16


def content_of(source: Any) -> tuple[str, Any]:
    """An image's content as a hash, and the image in a form that can still be opened.

    Args:
        source: A path, the bytes of a file, a binary file, a PIL image, or pixels; a `FileRef`;
            what a medium opened; or a sequence of these, as the frames of a clip.

    Raises:
        MediaError: If it is a file that cannot be read.

    Example:
        >>> content_of(b"abc")[0][:8]
        'ba7816bf'
    """
    if isinstance(source, (tuple, list)):
        if not source:
            raise ImageError("got an empty list as an image: expected the frames of a clip")
        contents = [content_of(member) for member in source]
        joined = f"clip {' '.join(key for key, _ in contents)}".encode()
        return hashlib.sha256(joined).hexdigest(), tuple(member for _, member in contents)
    if isinstance(source, (str, Path)) and Path(source).is_file():
        file = reference(Path(source))
        source = file if file.kind != "image" else file.read()
    if isinstance(source, FileRef):
        data = source.read()
        if source.kind == "image":
            return content_of(data)
        key = hashlib.sha256(f"{source.kind} ".encode() + data).hexdigest()
        return key, replace(source, data=data)
    if isinstance(source, (bytes, bytearray)):
        return hashlib.sha256(source).hexdigest(), source
    if isinstance(source, Opened):
        told = f"{source.medium} {source.told} {content_of(source.values)[0]}"
        return hashlib.sha256(told.encode()).hexdigest(), source
    if isinstance(source, Tensor):
        raw = source.detach().float().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(repr(tuple(source.shape)).encode() + raw).hexdigest(), source
    image = open_image(source)
    head = f"{image.mode} {image.size} ".encode()
    # a PIL image itself, no copy of it; a file can be read only once
    kept = source if isinstance(source, Image.Image) else image
    return hashlib.sha256(head + image.tobytes()).hexdigest(), kept


def known_as(model: VisionLanguageModel, source: Any) -> tuple[str, Any]:
    """As `content_of`, the hash telling also how the image's medium will open it.

    Args:
        model: Whose media are asked. One whose bounds can be chosen says them as `options`.
        source: As for `content_of`.
    """
    key, kept = content_of(source)
    options = str(getattr(medium_of(model, kept), "options", ""))
    return (hashlib.sha256(f"{options} {key}".encode()).hexdigest() if options else key), kept


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
