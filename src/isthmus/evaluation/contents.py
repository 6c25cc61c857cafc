"""What makes a task this one: a hash of all that it asks and shows. Pure: no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from isthmus.demonstrations.support import content_of, frames_of
from isthmus.evaluation.task import Item, Task
from isthmus.prompts.prompt import Example

DRAWN = 16
"""Episodes that are looked at where all images are drawn: they follow from seed and version."""


def described(task: Task) -> dict[str, Any]:
    """What records of a task belong to: another task of the same name is described otherwise.

    The hash covers questions, answers, rationales and demonstrations, and the contents of their
    images, wherever these are kept. Files may be renamed.

    Args:
        task: The task.

    Raises:
        ImageError: If an image cannot be read.

    Example:
        >>> task = Task("sums", "number", [Item("1", Example((), "2 + 2?", "4"))])
        >>> described(task) == described(Task("sums", "number", [Item("1", Example((), "?", "4"))]))
        False
    """
    asked = (task.kind, task.metric, task.instruction, task.template)
    lengths = (task.max_new_tokens, task.max_rationale_tokens)
    digest, kept = hashlib.sha256(), dict[str, str]()
    told = (_told(item, kept) for item in (*_looked_at(task), *task.support))
    for part in (asked, lengths, *told):
        digest.update(repr(part).encode(errors="backslashreplace"))
    return {
        "n": len(task.items),
        "support": len(task.support),
        "version": task.version,
        "contents": digest.hexdigest()[:16],
    }


def _looked_at(task: Task) -> Sequence[Item]:
    if not task.episodic:
        return task.items
    drawn = all(isinstance(image, Image.Image) for image in _images(task.items[0]))
    return task.items[:DRAWN] if drawn else task.items


def _examples(item: Item) -> tuple[Example, ...]:
    return (item.example, *(item.shots or ()))


def _images(item: Item) -> Iterator[Any]:
    """All images that an item shows, a clip's frames among them."""
    for example in _examples(item):
        for image in example.images:
            yield from frames_of(image)


def _told(item: Item, kept: dict[str, str]) -> tuple[object, ...]:
    """All of an item; images by their contents, of which those of files are kept."""
    texts = [(e.question, e.answer, e.rationale, len(e.images)) for e in _examples(item)]
    contents = []
    for image in _images(item):
        if not isinstance(image, (str, Path)):
            contents.append(content_of(image))
            continue
        if str(image) not in kept:
            kept[str(image)] = content_of(image)
        contents.append(kept[str(image)])
    return (item.id, item.choices, item.accepted, item.group, texts, contents)
