"""Documents in which images stand between sentences. Pure: no torch.

An image's tag stands directly before the sentence that it belongs to, and the images are kept
in the order of their tags, whatever order the file lists them in. (OpenFlamingo's loader keeps
the images in the file's order and the tags in the sentences' order, so that images change
places whenever the two differ.) Sentences are joined by a space:

    "A walk in town. <image>A cat. It sleeps. <image><image>Two dogs."
"""

from __future__ import annotations

import ast
import base64
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.data.records import Medium
from isthmus.data.tags import split_at_tags, tags_of
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, lone_surrogate

log = logging.getLogger(__name__)

Find = Callable[[str], FileRef]
"""Finds the image of a name; LookupError if there is none."""
Document = tuple[str, tuple[Medium, ...]]
"""A text, and the images of its tags in their order."""


def plain(text: Any, what: str) -> str:
    """The text, which must be one and must not hold a tag of ours.

    Raises:
        TypeError: If it is no string.
        ValueError: If it holds `<image>` or `<|endofchunk|>`: a model would take it for ours. Or
            if it holds half of a character, which no tokenizer takes.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}")
    for tag in (IMAGE_TAG, END_TAG):
        if tag in text:
            raise ValueError(f"{what} holds {tag}, which no image belongs to: take it out")
    if wrong := lone_surrogate(text, what):
        raise ValueError(wrong)
    return text


def join(pieces: Iterable[str | Medium]) -> Document:
    """Text and images of a document's pieces in reading order.

    Example:
        >>> cat = FileRef(Path("cat.jpg"))
        >>> join(["In town.", cat, "A cat."])[0]
        'In town. <image>A cat.'
    """
    parts: list[str] = []
    media: list[Medium] = []
    tags = ""
    for piece in pieces:
        if not isinstance(piece, str):
            media.append(piece)
            tags += IMAGE_TAG
        elif sentence := plain(piece, "a sentence").strip():
            parts.append(tags + sentence)
            tags = ""
    return " ".join([*parts, tags] if tags else parts), tuple(media)


def from_tagged(text: str, media: Sequence[Medium]) -> Document:
    """A text that has tags of its attachments already, and these in the order of the tags.

    Raises:
        ValueError: If there are not as many tags as attachments, or a tag of no kind of theirs.
    """
    tags = sum(text.count(tag) for tag in tags_of(media))
    if tags != len(media):
        raise ValueError(f"the text has {tags} {IMAGE_TAG} tags and {len(media)} images")
    pieces, taken = split_at_tags(text, media)
    plain("".join(pieces), "the text")
    return IMAGE_TAG.join(pieces), tuple(taken)


def from_aligned(
    texts: Sequence[Any], images: Sequence[Any], read: Callable[[Any], FileRef]
) -> Document:
    """A row of OBELICS (Laurençon et al. 2023, section 3): two lists, None where the other stands.

    Raises:
        ValueError: If the lists differ in length, or both or neither has something at a place.
    """
    if len(texts) != len(images):
        raise ValueError(f'"texts" has {len(texts)} entries and "images" {len(images)}')
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            which = "neither" if text is None else "both"
            raise ValueError(f'entry {place}: expected one of "texts" and "images", got {which}')
    pairs = zip(texts, images, strict=True)
    return join(plain(t, "a text") if i is None else read(i) for t, i in pairs)


def from_mmc4(row: Mapping[str, Any], find: Find, origin: str) -> Document:
    """A row of Multimodal C4 (Zhu et al. 2023, section 3).

    `matched_text_index` says which sentence of `text_list` an image belongs to; where it is
    missing, the image's row of `similarity_matrix` does, by its largest entry. Images of one
    sentence keep the file's order. An image without a sentence, or that was never downloaded, is
    left out; one in `image_base64`, as OpenFlamingo's converter writes it, is decoded.

    Args:
        row: The row, with `text_list` and `image_info`.
        find: Finds an image by its `image_name`.
        origin: Where the row was read, for messages.

    Raises:
        ValueError: If an index is out of range, or base64 is damaged.
    """
    sentences = [plain(sentence, "a sentence") for sentence in row["text_list"]]
    matrix = row.get("similarity_matrix")
    before: list[list[FileRef]] = [[] for _ in sentences]
    for number, info in enumerate(row["image_info"]):
        index = info.get("matched_text_index")
        if index is None and matrix:
            index = max(range(len(matrix[number])), key=matrix[number].__getitem__, default=None)
        if index is None or index < 0:
            continue
        if index >= len(sentences):
            raise ValueError(
                f"image {number} belongs to sentence {index}, of {len(sentences)} sentences"
            )
        image = _image(info, number, find, origin)
        if image is not None:
            before[index].append(image)
    pieces: list[str | Medium] = []
    for images, sentence in zip(before, sentences, strict=True):
        pieces.extend((*images, sentence))
    return join(pieces)


def _image(info: Mapping[str, Any], number: int, find: Find, origin: str) -> FileRef | None:
    """The image of an entry of `image_info`; None if it is not there."""
    name = str(info.get("image_name") or number)
    if coded := info.get("image_base64"):
        return FileRef(Path(origin), member=name, data=decode_base64(coded))
    try:
        return find(name)
    except LookupError:
        # Most of the addresses of a crawl are gone some years later: the rest is a document still
        log.info("%s: no image %s, left out", origin, name)
        return None


def decode_base64(coded: str) -> bytes:
    """Bytes of base64, also of Python's notation for it, `b'...'`.

    OpenFlamingo's converter writes `str(bytes)`, that is the notation.

    Raises:
        ValueError: If it is damaged.
    """
    if coded[:2] in ("b'", 'b"'):
        try:
            coded = ast.literal_eval(coded).decode("ascii")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"damaged base64: {error}") from error
    return base64.b64decode(coded, validate=True)
