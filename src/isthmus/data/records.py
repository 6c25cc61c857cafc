"""One record type for everything a model learns from. Pure: no torch.

A record is a conversation about images (`turns`), or a document in which images stand between
sentences (`text` and `images_in_text`). A caption is a conversation of one turn without a
question, plain text is a document without images, and a clip is a tuple of images where
otherwise one would stand. Nothing is opened before it is needed: a `FileRef` says where the bytes
are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from isthmus.errors import ConfigError, InputError
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import IMAGE_TAG, Example

Medium = FileRef | tuple[FileRef, ...]
"""An image or another attachment; or a clip, its frames in order."""


@dataclass(frozen=True)
class Record:
    """What a model learns from: a conversation about images, or a document with images.

    Attributes:
        turns: Question and answer in turn, each with the images that are shown with it; an empty
            question is a caption's.
        text: A document: `<image>` stands where an image does. None for a conversation.
        images_in_text: The document's images, in the order of their tags.
        names: Other answers to the first question that are also right, itself the first.
        extra: What else the source says.
        origin: Where the record was read, for messages: "pairs.jsonl, line 3".

    Example:
        >>> record = Record.of("cat.jpg", "What is it?", "a cat")
        >>> record.question, record.answer, len(record.images)
        ('What is it?', 'a cat', 1)
    """

    turns: tuple[Example, ...] = ()
    text: str | None = None
    images_in_text: tuple[Medium, ...] = ()
    names: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.turns):
            raise InputError("a record has turns or a text, and not both")
        tags = 0 if self.text is None else self.text.count(IMAGE_TAG)
        if tags != len(self.images_in_text):
            raise InputError(
                f"the text has {tags} {IMAGE_TAG} tags and {len(self.images_in_text)} images"
            )

    @classmethod
    def of(
        cls,
        image: str | Path | Medium | None,
        question: str,
        answer: str,
        names: Sequence[str] = (),
        **rest: Any,
    ) -> Record:
        """A record of one turn about one image, or about none."""
        medium = FileRef(Path(image)) if isinstance(image, (str, Path)) else image
        images = () if medium is None else (medium,)
        return cls((Example(images, question, answer),), names=tuple(names) or (answer,), **rest)

    @property
    def images(self) -> tuple[Medium, ...]:
        """All images and clips, in the order in which their tags will stand."""
        return self.images_in_text or tuple(m for turn in self.turns for m in turn.images)

    @property
    def question(self) -> str:
        """The first question; empty for a caption or a document."""
        return self.turns[0].question if self.turns else ""

    @property
    def answer(self) -> str:
        """The first answer, or a document's text."""
        return (self.turns[0].answer or "") if self.turns else (self.text or "")

    def asked(self, question: str) -> Record:
        """The same record with a first question, if it is a conversation that has none."""
        if not self.turns or self.question:
            return self
        return replace(self, turns=(replace(self.turns[0], question=question), *self.turns[1:]))


def frames(medium: Medium) -> tuple[FileRef, ...]:
    """The images of a medium: itself, or a clip's frames in order."""
    return medium if isinstance(medium, tuple) else (medium,)


class LazyRecords(Sequence[Record]):
    """Records of which each is made when it is asked for, by `record_at`."""

    @abstractmethod
    def record_at(self, index: int) -> Record:
        """The record of a number from 0 to below the length.

        Raises:
            ConfigError: If what stands there is not a record.
        """

    def media(self) -> Iterator[Medium]:
        """What all records show, those that cannot be read left out."""
        for index in range(len(self)):
            with suppress(InputError):
                yield from self[index].images

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """A record, or some of them, made now."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.record_at(index % len(self))


def media_of(records: Sequence[Record]) -> Iterator[Medium]:
    """What records show, those that cannot be read left out."""
    if isinstance(records, LazyRecords):
        yield from records.media()
        return
    for index in range(len(records)):
        with suppress(InputError):
            yield from records[index].images


class ReadRecords(LazyRecords):
    """Records of which some could not be read, and what is wrong with these.

    `records[i]` raises a ConfigError for one of them, so that a bad line costs its own record and
    no other: `isthmus data check` names it, and a run counts it as a broken sample.

    Args:
        entries: Records, and what is wrong in place of the others.
    """

    def __init__(self, entries: Sequence[Record | str]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def record_at(self, index: int) -> Record:
        """The record that was read."""
        entry = self.entries[index]
        if isinstance(entry, str):
            raise ConfigError(entry)
        return entry


def as_records(entries: Sequence[Record | str]) -> Sequence[Record]:
    """Records, some of which could not be read; a plain list where all could."""
    records = [entry for entry in entries if isinstance(entry, Record)]
    return records if len(records) == len(entries) else ReadRecords(entries)


def entries_of(records: Sequence[Record]) -> Iterator[Record | str]:
    """Each record, or what is wrong in its place."""
    if isinstance(records, ReadRecords):
        yield from records.entries
        return
    for number in range(len(records)):
        try:
            yield records[number]
        except ConfigError as error:
            yield str(error)


def with_questions(records: Sequence[Record], questions: Sequence[str]) -> Sequence[Record]:
    """Gives records without a question one of `questions`, in turn."""
    if not questions:
        return records
    return [r.asked(questions[i % len(questions)]) for i, r in enumerate(records)]
