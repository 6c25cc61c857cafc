"""The support set: demonstrations to choose from, and the guard that keeps the query out of them.

A demonstration that shows the query's own images with the query's own question gives the answer
away, and a score with it measures copying. Files are compared by what they show: the same image
saved anew in another lossless format is the same image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isthmus.errors import ImageError, InputError
from isthmus.files import content_key
from isthmus.media.file_ref import FileRef
from isthmus.media.image import content_hash, decode, open_image
from isthmus.prompts.prompt import Example


def open_frames(image: Any) -> list[Image.Image]:
    """An image as a list of one, or a clip's frames, as RGB.

    Args:
        image: A path, bytes, a PIL image, a `media.file_ref.FileRef`, or a sequence of these.

    Raises:
        ImageError: If it cannot be read, or is an open file: reading it here would leave
            nothing for the prompt.

    Example:
        >>> [frame.mode for frame in open_frames(Image.new("L", (2, 2)))]
        ['RGB']
    """
    return [
        decode(frame, frame.read()) if isinstance(frame, FileRef) else open_image(_source(frame))
        for frame in frames_of(image)
    ]


def frames_of(image: Any) -> tuple[Any, ...]:
    """A clip's frames, or the image alone."""
    return tuple(image) if isinstance(image, (tuple, list)) else (image,)


def file_bytes(image: Any) -> bytes | None:
    """The bytes of an image's file; None for a PIL image, which has none.

    Raises:
        ImageError: If the file cannot be read.
    """
    source = _source(image)
    if isinstance(source, Image.Image):
        return None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, Path)):
        raise ImageError(f"got {type(source).__name__}: expected a path, bytes or a PIL image")
    return FileRef(Path(source)).read()


def content_of(image: Any) -> str:
    """A hash of an image: of the bytes of its file, or of a PIL image's pixels.

    Raises:
        ImageError: If the file cannot be read.
    """
    data = file_bytes(image)
    return content_hash(image) if data is None else content_key(data)


def _source(image: Any) -> Any:
    if isinstance(image, FileRef):
        return image.read()
    if hasattr(image, "read"):
        raise ImageError(
            "an open file can be read only once, and a shot is looked at more often: pass its "
            "path or its bytes"
        )
    return image


def pixel_keys(example: Example) -> tuple[str, ...]:
    """A hash of each image's pixels, in order; of a clip, of all its frames.

    Raises:
        ImageError: If an image cannot be read.

    Example:
        >>> grey, rgb = Image.new("L", (2, 2)), Image.new("RGB", (2, 2))
        >>> pixel_keys(Example(grey)) == pixel_keys(Example(rgb))
        True
    """
    keys = []
    for image in example.images:
        hashes = [content_hash(frame) for frame in open_frames(image)]
        both = hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:32]
        keys.append(hashes[0] if len(hashes) == 1 else both)
    return tuple(keys)


def identity(example: Example) -> str:
    """A hash of what is asked: the question and the pixels of the images."""
    return hashlib.sha256(repr((example.question, pixel_keys(example))).encode()).hexdigest()


def _plain(question: str) -> str:
    return " ".join(question.split()).casefold()


class Support:
    """Demonstrations to choose from, with the leak guard.

    A demonstration is never chosen for a query if it has the query's id, or the same question
    (but for case and white space) about the same pixels. Images are opened for this only
    where questions are the same, and each demonstration's once.

    Args:
        examples: The demonstrations.
        ids: What names each in its data set, where it has a name.
        other_images: Refuse as well every demonstration that shows one of the query's images
            with another question.

    Raises:
        InputError: If there are none, or not as many ids.

    Example:
        >>> support = Support([Example((), "2 + 2?", "4"), Example((), "3 + 3?", "6")])
        >>> support.take([0, 1], Example((), "2 + 2?"), 1)[0].answer
        '6'
    """

    def __init__(
        self,
        examples: Sequence[Example],
        ids: Sequence[Any] | None = None,
        *,
        other_images: bool = False,
    ) -> None:
        if not examples:
            raise InputError("the support set is empty: expected at least one demonstration")
        if ids is not None and len(ids) != len(examples):
            raise InputError(f"{len(examples)} demonstrations came with {len(ids)} ids")
        self.examples = tuple(examples)
        self.ids = None if ids is None else tuple(ids)
        self.other_images = other_images
        self._questions = [_plain(example.question) for example in self.examples]
        self._keys: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """How many demonstrations there are."""
        return len(self.examples)

    def _pixels(self, index: int) -> tuple[str, ...]:
        if index not in self._keys:
            self._keys[index] = pixel_keys(self.examples[index])
        return self._keys[index]

    def allowed(
        self,
        ranking: Iterable[int],
        queries: Sequence[Example],
        most: int,
        query_ids: Sequence[Any] = (),
        alike: NDArray[np.bool_] | None = None,
    ) -> list[int]:
        """The first demonstrations of a ranking that give away none of some queries.

        Args:
            ranking: Numbers of demonstrations, best first.
            queries: The queries that will see them.
            most: How many are wanted.
            query_ids: The queries' ids, where they have any.
            alike: (n,) false where a demonstration's images are known not to be a query's, so
                that they need not be opened.

        Returns:
            At most `most` numbers, in the ranking's order.
        """
        names = {name for name in query_ids if name is not None}
        asked: dict[str, list[Example]] = {}
        for query in queries:
            asked.setdefault(_plain(query.question), []).append(query)
        shown: dict[int, tuple[str, ...]] = {}

        def pixels(query: Example) -> tuple[str, ...]:
            if id(query) not in shown:
                shown[id(query)] = pixel_keys(query)
            return shown[id(query)]

        def leaks(index: int) -> bool:
            if self.ids is not None and self.ids[index] in names:
                return True
            count = len(self.examples[index].images)
            if alike is None or alike[index]:
                for query in asked.get(self._questions[index], ()):
                    if len(query.images) == count and self._pixels(index) == pixels(query):
                        return True
            if not self.other_images or not count:
                return False
            return any(set(self._pixels(index)) & set(pixels(query)) for query in queries)

        found: list[int] = []
        for index in ranking:
            if len(found) >= most:
                break
            if not leaks(int(index)):
                found.append(int(index))
        return found

    def take(
        self,
        ranking: Iterable[int],
        query: Example,
        k: int,
        query_id: Any = None,
        alike: NDArray[np.bool_] | None = None,
    ) -> list[Example]:
        """The first k demonstrations of a ranking that do not give the query away.

        Raises:
            InputError: If there are fewer.
        """
        chosen = self.allowed(ranking, [query], k, [query_id], alike)
        return self.pick(chosen, k)

    def pick(self, chosen: Sequence[int], k: int) -> list[Example]:
        """The demonstrations of some numbers, which must be k.

        Raises:
            InputError: If k is negative, or they are fewer.
        """
        if k < 0:
            raise InputError(f"asked for {k} shots: expected 0 or more")
        if len(chosen) < k:
            raise InputError(
                f"asked for {k} shots, and only {len(chosen)} of the {len(self)} demonstrations "
                "may be shown with this query: take fewer, or a larger support set"
            )
        return [self.examples[index] for index in chosen[:k]]
