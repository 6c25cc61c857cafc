"""One row of any file, a line of JSON or of a table, made into a record. Pure: no torch.

    {"image": "a.jpg", "text": "a dog on a sofa"}                     a caption (also "caption")
    {"image": "a.jpg", "name": "dog", "names": ["dog", "puppy"]}      a name, and synonyms
    {"filepath": "a.jpg", "title": "a dog on a sofa"}                 a caption, as open_clip has it
    {"image": "a.jpg", "question": "How many?", "answer": "2"}        a question
    {"images": ["a.jpg", "b.jpg"], "question": "...", "answer": "..."}   about several images
    {"image": "a.jpg", "question": "...", "lead": "Let's see.", "answer": "..."}   an answer led in
    {"features": "a.npy", "question": "...", "answer": "..."}         features computed before
    {"video": ["1.jpg", "2.jpg"], "text": "..."}                      a clip, or a folder of frames
    {"sound": "a.wav", "text": "..."}                                 another kind, by its key
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>..."}, ...]}   LLaVA
    {"messages": [{"role": "user", "content": [...]}, ...]}           OpenAI, Transformers
    {"text": "A cat. <image>A dog.", "images": ["dog.jpg"]}           a document
    {"texts": ["A cat.", null], "images": [null, "dog.jpg"]}          OBELICS
    {"text_list": [...], "image_info": [...]}                         Multimodal C4
    {"text": "words only"}                                            plain text

Other keys are kept in `extra`; `media.kinds` has all kinds of attachments. An image is a path, an
object with `bytes` or `path` (Hugging Face), a `data:` address or a PIL image, which becomes PNG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from isthmus.data.chats import take_tags, turns
from isthmus.data.interleaved import (
    Document,
    Find,
    from_aligned,
    from_mmc4,
    from_tagged,
    plain,
)
from isthmus.data.records import Medium, Record
from isthmus.data.tags import has_tag
from isthmus.errors import ConfigError
from isthmus.media.data_uri import bytes_of, is_data_uri
from isthmus.media.fetch import is_url
from isthmus.media.file_ref import FileRef
from isthmus.media.image import ENDINGS, open_image
from isthmus.media.kinds import kind_named, kind_of, kinds
from isthmus.prompts.prompt import IMAGE_TAG, Example

ONE_IMAGE = ("features", "image", "file_name")
CHATS = ("conversations", "messages")
ANSWERS = ("answer", "name", "text", "caption")
EXPECTED = '{"image": ..., "question": ..., "answer": ...} or {"image": ..., "text": ...}'


def to_record(values: Any, find: Find, origin: str) -> Record:
    """The record of a row.

    Args:
        values: The row.
        find: Finds an image by the name that the row gives.
        origin: Where the row stands, for messages: "pairs.jsonl, line 3".

    Raises:
        ConfigError: If it is none; the message begins with `origin`.

    Example:
        >>> to_record({"image": "a.jpg", "text": "a dog"}, lambda n: FileRef(Path(n)), "x").answer
        'a dog'
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin} is not a record: expected an object, {EXPECTED}")
    try:
        return _record(dict(values), find, origin)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        has = ", ".join(str(key) for key in values) or "no key"
        raise ConfigError(
            f"{origin} is not a record ({why}): it has {has:.200}; expected {EXPECTED}"
        ) from error


def _record(row: dict[str, Any], find: Find, origin: str) -> Record:
    """The record of a row that is taken to pieces."""
    read = partial(to_medium, find=find, origin=origin)
    if row.get("filepath") is not None and not any(row.get(k) for k in (*ONE_IMAGE, "images")):
        row["image"] = row.pop("filepath")
        if not any(row.get(key) is not None for key in (*ANSWERS, "names")):
            row["text"] = row.pop("title", None)
    if row.get("text_list") is not None:
        document = from_mmc4(row, find, origin)
        return _document(document, row, origin, "text_list", "image_info", "similarity_matrix")
    if row.get("texts") is not None:
        document = from_aligned(
            row["texts"], row.get("images") or (), partial(to_file, find=find, origin=origin)
        )
        return _document(document, row, origin, "texts", "images")

    several = row.get("images") is not None
    media = _media(row, read)
    told_apart = several or any(kind_of(medium) not in ("image", "clip") for medium in media)
    for key in CHATS:
        chat = row.pop(key, None)
        if chat is not None:
            talk = turns(chat, media, read)
            return Record(talk, names=(talk[0].answer or "",), extra=row, origin=origin)

    text = row.get("text")
    if not media and isinstance(text, str) and not has_tag(text, media):
        odd = [k for k, v in row.items() if isinstance(v, str) and v.lower().endswith(ENDINGS)]
        if odd := [key for key in odd if key not in ("question", *ANSWERS)]:
            raise ValueError(
                f'no image, though "{odd[0]}" names one: call it {" or ".join(ONE_IMAGE[1:])}'
            )
    told = {key for key in ("question", "answer", "name", "names") if row.get(key) is not None}
    if isinstance(text, str) and not told and (not media or (told_apart and has_tag(text, media))):
        return _document(from_tagged(text, media), row, origin, "text")
    return _turn(row, media, origin)


def _turn(row: dict[str, Any], media: list[Medium], origin: str) -> Record:
    """A record of one turn: a caption, a name or a question."""
    names = tuple(plain(n, "a name") for n in _strings(row.pop("names", None)))
    given = [value for key in ANSWERS if (value := row.pop(key, None)) is not None]
    # An empty answer is a record still: `check` counts it, with a better message than one here
    answer = next((v for v in [*given, *names] if v), given[0] if given else None)
    if answer is None:
        raise ValueError('neither "answer" nor "name" nor "text"')
    lead = plain(row.pop("lead", None) or "", "the lead")
    question = row.pop("question", None)
    if not media and question is None:
        raise ValueError("no image")
    waiting = list(media)
    if question is None:
        question = ""
    elif has_tag(question, media):
        question, shown = take_tags(question, waiting)
        if waiting:
            raise ValueError(f"{len(shown)} {IMAGE_TAG} tags and {len(media)} images")
        media = shown
    answer = plain(answer, "the answer")
    turn = Example(tuple(media), plain(question, "the question"), answer, lead=lead)
    return Record((turn,), names=names or (answer,), extra=row, origin=origin)


def _document(document: Document, row: dict[str, Any], origin: str, *used: str) -> Record:
    text, media = document
    extra = {key: value for key, value in row.items() if key not in used}
    return Record(text=text, images_in_text=media, extra=extra, origin=origin)


def _strings(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, str):
        raise TypeError("expected a list of strings, got one string")
    return tuple(value)


def _media(row: dict[str, Any], read: Callable[[Any, str], Medium]) -> list[Medium]:
    """Takes attachments out of a row: images first, then clips, then those of other kinds."""
    single = [value for key in ONE_IMAGE if (value := row.pop(key, None)) is not None]
    several = _strings(row.pop("images", None))
    if single and several:
        raise ValueError('both "image" and "images"')
    # "features" stand for the image that "image" names
    media = [read(value, "image") for value in [*single[:1], *several]]
    known = kinds()
    for name in ("clip", *(name for name in known if name not in ("image", "clip"))):
        given = [value for key in known[name].keys if (value := row.pop(key, None)) is not None]
        for value in given:
            listed = name != "clip" and isinstance(value, list | tuple)
            media.extend(read(one, name) for one in (value if listed else [value]))
    return media


def to_medium(value: Any, kind: str, *, find: Find, origin: str) -> Medium:
    """An attachment of what a row has for it.

    Args:
        value: A path, bytes, an object with `bytes` or `path`, a `data:` address, a PIL image; for
            a clip a list of these, or a folder of images.
        kind: The name of its kind.
        find: Finds a file by its name.
        origin: Where the row stands.

    Raises:
        TypeError: If it is nothing that can be one.
        ValueError: If it is an address, or a clip without frames.
        LookupError: If there is none of this name.
    """
    if kind == "clip":
        return to_clip(value, partial(to_file, find=find, origin=origin))
    return to_file(value, kind, find=find, origin=origin)


def to_file(value: Any, kind: str = "image", *, find: Find, origin: str) -> FileRef:
    """A file of what a row has for it; raises as `to_medium`."""

    def in_memory(data: bytes, name: str = kind) -> FileRef:
        return FileRef(Path(origin), member=Path(name).name, data=data, kind=kind)

    if isinstance(value, Image.Image):
        return in_memory(png(value), "image.png")
    if isinstance(value, bytes):
        return in_memory(value)
    if isinstance(value, Mapping):
        name, data = value.get("path"), value.get("bytes")
        if data is not None:
            return in_memory(data, name or kind)
        value = name
    if not isinstance(value, str) or not value:
        what = "an image" if kind == "image" else f'what is called "{kind}"'
        raise TypeError(f"{what} must be a path, got {value!r:.60}")
    if is_data_uri(value):
        return in_memory(bytes_of(value))
    if is_url(value):
        raise ValueError(f"{value:.80} is an address: download it, and name the file")
    return replace(find(value), kind=kind)


def to_clip(value: Any, read: Callable[[Any], FileRef]) -> tuple[FileRef, ...]:
    """The frames of a clip: a list of images, or a folder of them in the order of their numbers.

    Raises:
        ValueError: If there are none.
    """
    if not isinstance(value, str):
        frames = tuple(read(frame) for frame in _strings(value))
    else:
        folder = read(value).path
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not a folder of frames: extract the video's frames first"
            )
        frames = tuple(FileRef(p) for p in sorted(folder.iterdir(), key=natural) if is_image(p))
    if not frames:
        raise ValueError("a clip without frames")
    return frames


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def is_attachment(path: Path) -> bool:
    """Whether a file is of some kind by its name, and not hidden."""
    return kind_named(path) is not None and not path.name.startswith(".")


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts frame-2 before frame-10."""
    return [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", path.name)]


def png(image: Image.Image) -> bytes:
    """A PIL image as a PNG file; what PNG does not know, such as CMYK, becomes RGB.

    Raises:
        ImageError: If nothing says which values of it are black and white.
    """
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = open_image(image)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
