"""What is in a data set, and whether a model can be trained on it. Pure: no torch."""

from __future__ import annotations

import hashlib
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isthmus.data.records import Record, entries_of, frames
from isthmus.data.sources import open_data
from isthmus.errors import ImageError, MediaError
from isthmus.files import content_key
from isthmus.media.file_ref import FileRef
from isthmus.media.image import FORMATS, content_hash, open_image
from isthmus.media.kinds import kinds
from isthmus.prompts.prompt import IMAGE_TAG, lone_surrogate
from isthmus.reports.progress import tracked

SMALL = 224
"""Pixels: encoders enlarge an image whose shorter side is below it, which adds nothing."""
MUCH = 0.2
"""Share of a data set from which on a finding is worth a word in the verdict."""


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of values; None if there are none."""
        if not values:
            return None
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.min:g} / {self.median:g} / {self.max:g}"


@dataclass(frozen=True)
class Trouble:
    """An image or a record that cannot be used, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        records: Number of records.
        usable: Records that can be read, have a text and only whole images.
        images: Different images; a clip's frames count one by one.
        clips: Clips in all records.
        others: Different attachments of other kinds, by the name of the kind.
        documents: Records that are a text, with images in it or not.
        turns: Questions and captions in all conversations.
        features: Images that are features, computed before.
        width, height: Pixels of the images, EXIF orientation not applied.
        small: Share of the images whose shorter side is below 224 pixels.
        characters, words: Length of a record's text, questions and answers, without tags.
        duplicate_images: Images in another place with the same content.
        duplicate_records: Records with the same texts and the same images as one before.
        empty_answers: Turns and documents without a text.
        broken_images: Images that are missing or damaged.
        broken_records: Records that cannot be read.
        decoded: Whether images were decoded, or only their headers read.
    """

    records: int = 0
    usable: int = 0
    images: int = 0
    clips: int = 0
    others: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    turns: int = 0
    features: int = 0
    width: Spread | None = None
    height: Spread | None = None
    small: float = 0.0
    characters: Spread | None = None
    words: Spread | None = None
    duplicate_images: int = 0
    duplicate_records: int = 0
    empty_answers: int = 0
    broken_images: tuple[Trouble, ...] = ()
    broken_records: tuple[Trouble, ...] = ()
    decoded: bool = True

    @property
    def exit_code(self) -> int:
        """2 if nothing is usable, 1 if an image or a record is broken, otherwise 0."""
        if not self.usable:
            return 2
        return 1 if self.broken_images or self.broken_records else 0

    @property
    def verdict(self) -> str:
        """In words, whether the set is fit for training."""
        broken = [
            _count(len(self.broken_images), "broken image"),
            _count(len(self.broken_records), "unreadable record"),
        ]
        broken = [text for text in broken if text]
        if not self.usable:
            why = f": {' and '.join(broken)}" if broken else ""
            return f"Not fit for training: none of {self.records} records is usable{why}."
        remarks: list[str] = []
        if self.empty_answers:
            remarks.append(f"{_count(self.empty_answers, 'empty answer')} teach to say nothing")
        if self.duplicate_records > MUCH * self.records:
            remarks.append(
                f"{self.duplicate_records / self.records:.0%} of the records are repeats"
            )
        if self.small > MUCH:
            remarks.append(f"{self.small:.0%} of the images are below {SMALL} pixels")
        if broken:
            fit = f"Fit for training only without {' and '.join(broken)}"
        else:
            fit = "Fit for training"
        note = f" But {'; '.join(remarks)}." if remarks else ""
        return f"{fit}: {self.usable} of {self.records} records are usable.{note}"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return asdict(self) | {"verdict": self.verdict, "exit_code": self.exit_code}


def _count(number: int, what: str) -> str:
    """As in "3 broken images"; nothing for none."""
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""


@dataclass
class _Tally:
    """What was seen so far."""

    decode: bool
    hashes: dict[tuple[Path, int, str, int, str], str | None] = field(default_factory=dict)
    """Content of each image by its place; None for a broken one."""
    contents: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    widths: list[float] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    characters: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    broken: list[Trouble] = field(default_factory=list)
    unreadable: list[Trouble] = field(default_factory=list)
    usable: int = 0
    clips: int = 0
    others: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    turns: int = 0
    features: int = 0
    twins: int = 0
    repeats: int = 0
    empty: int = 0

    def image(self, image: FileRef) -> str | None:
        """The content's hash, from the first look at it; None if it is broken."""
        # Images in memory may all be called the same
        place = (image.path, image.start, image.member, hash(image.data), image.kind)
        if place in self.hashes:
            return self.hashes[place]
        self.hashes[place] = None
        if image.kind != "image" and not image.is_features:
            self.others[image.kind] += 1
        try:
            content, size = look(image, decode=self.decode)
        except ValueError as error:  # ImageError, or a zero byte in the name
            self.broken.append(Trouble(str(image), str(error)))
            return None
        if image.is_features:
            self.features += 1
        elif size is not None:
            self.widths.append(size[0])
            self.heights.append(size[1])
        self.twins += content in self.contents
        self.contents.add(content)
        self.hashes[place] = content
        return content

    def record(self, record: Record) -> None:
        """Counts a record."""
        if record.text is not None:
            self.documents += 1
            answers, said = [record.text], [record.text.replace(IMAGE_TAG, "")]
        else:
            self.turns += len(record.turns)
            answers = [turn.answer or "" for turn in record.turns]
            said = [text for t in record.turns for text in (t.question, t.answer) if text]
        empty = sum(not answer.strip() for answer in answers)
        self.empty += empty
        self.characters.append(sum(map(len, said)))
        self.words.append(sum(len(text.split()) for text in said))
        self.clips += sum(isinstance(medium, tuple) for medium in record.images)
        contents = [self.image(p) for medium in record.images for p in frames(medium)]
        # A document of images only has a text, its tags, but nothing that could be learnt
        self.usable += None not in contents and not empty and any(map(str.strip, said))
        told = [record.text, *((t.question, t.answer, len(t.images)) for t in record.turns)]
        key = hashlib.sha256(repr((told, contents)).encode()).hexdigest()
        self.repeats += key in self.texts
        self.texts.add(key)


def look(image: FileRef, *, decode: bool = True) -> tuple[str, tuple[int, int] | None]:
    """Hash of an image's content, and its width and height in pixels.

    Args:
        image: An image, a file of another kind, or features.
        decode: Decode it, and hash its pixels: the same for the same pixels in another format.
            Otherwise only the header is read, and the file's bytes are hashed.

    Returns:
        The hash, and the size; None in place of the size for what is no image.

    Raises:
        MediaError: If it is missing or damaged.
    """
    data = image.read()
    broken = ImageError if image.kind == "image" else MediaError
    if image.size is not None and len(data) < image.size:
        raise broken(f"{image} ends after {len(data)} of {image.size} bytes")
    plain = content_key(data)
    if image.is_features:
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
            sound = array.ndim == 2 and bool(np.isfinite(array).all())
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise ImageError(f"{image} is not an array of numbers: {error}") from error
        if not sound:
            raise ImageError(f"{image} is {array.shape}: expected finite (N, D_vision)")
        return plain, None
    if not data:
        what = "an image" if image.kind == "image" else f"a file of the kind {image.kind}"
        raise broken(f"{image} is empty (0 bytes): expected {what}")
    if image.kind != "image":
        if decode:
            try:
                kinds()[image.kind].open(data)
            except MediaError as error:
                raise MediaError(f"{image}: {error}") from error
        return plain, None
    try:
        if decode:
            opened = open_image(data)
            return content_hash(opened), opened.size
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            return plain, header.size
    except ImageError as error:
        why = str(error).replace(f"the {len(data)} bytes given", str(image))
        raise ImageError(why) from error
    except Exception as error:  # Pillow's own, and struct.error of damaged headers
        raise ImageError(f"{image} cannot be opened: no known format, or damaged") from error


def check_data(
    source: str | Path | Any,
    root: str | Path | None = None,
    *,
    decode: bool = True,
    quiet: bool = True,
) -> Report:
    """Reads all of a data set and says what is in it.

    Args:
        source: Anything that `read_data` takes.
        root: What `source` and its images are relative to.
        decode: Decode every image; without, damage behind a header goes unseen.
        quiet: No progress bar.

    Returns:
        The report.

    Raises:
        ConfigError: If the source as a whole cannot be read; a bad record is in the report.

    Example:
        >>> check_data([Record(text="Only words.")]).verdict
        'Fit for training: 1 of 1 records are usable.'
    """
    records = open_data(source, root=root)
    tally = _Tally(decode)
    numbers = tracked(range(len(records)), "Checking", quiet=quiet)
    for record in _readable(records, numbers, tally):
        tally.record(record)
    pixels = list(zip(tally.widths, tally.heights, strict=True))
    return Report(
        records=len(records),
        usable=tally.usable,
        images=sum(kind == "image" for *_, kind in tally.hashes),
        clips=tally.clips,
        others=dict(tally.others),
        documents=tally.documents,
        turns=tally.turns,
        features=tally.features,
        width=Spread.of(tally.widths),
        height=Spread.of(tally.heights),
        small=sum(min(size) < SMALL for size in pixels) / max(len(pixels), 1),
        characters=Spread.of(tally.characters),
        words=Spread.of(tally.words),
        duplicate_images=tally.twins,
        duplicate_records=tally.repeats,
        empty_answers=tally.empty,
        broken_images=tuple(tally.broken),
        broken_records=tuple(tally.unreadable),
        decoded=decode,
    )


def _readable(records: Sequence[Record], numbers: Iterable[int], tally: _Tally) -> Iterator[Record]:
    """The records that can be read and trained on; the others are noted."""
    for number, entry in zip(numbers, entries_of(records), strict=True):
        wrong = entry if isinstance(entry, str) else _no_unicode(entry)
        if wrong or isinstance(entry, str):
            tally.unreadable.append(Trouble(f"record {number + 1}", wrong))
        else:
            yield entry


def _no_unicode(record: Record) -> str:
    """What no tokenizer takes in a record that was made elsewhere than in `rows`."""
    turns = [text for t in record.turns for text in (t.question, t.answer, t.rationale)]
    for text in (record.text, *turns, *record.names):
        if text and (wrong := lone_surrogate(text)):
            return f"{record.origin}: {wrong}" if record.origin else wrong
    return ""
