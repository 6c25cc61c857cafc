"""What makes a task this one: a hash of all that it asks and shows. Pure: no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from isthmus.demonstrations.support import content_of, frames_of
from isthmus.evaluation.task import Item, Task
from isthmus.prompts.prompt import Example


def described(task: Task) -> dict[str, Any]:
    """What records of a task belong to: another task of the same name is described otherwise.

    The hash covers questions, answers, rationales and demonstrations, and the contents of their
    images, wherever these are kept. Files may be renamed. How many images the questions are about
    is said as well, and how many different images and classes.

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
    asked_about: list[str] = []
    for part in (asked, lengths):
        digest.update(repr(part).encode(errors="backslashreplace"))
    for number, item in enumerate(chain(task.items, task.support)):
        texts, contents = _told(item, kept)
        digest.update(repr((texts, contents)).encode(errors="backslashreplace"))
        if number < len(task.items):
            asked_about += contents[: len(list(_frames(item.example)))]
    return {
        "n": len(task.items),
        "support": len(task.support),
        "version": task.version,
        "contents": digest.hexdigest()[:16],
        "images": len(asked_about),
        "different_images": len(set(asked_about)),
        "different_classes": len({item.class_name for item in task.items if item.class_name}),
    }


def _examples(item: Item) -> tuple[Example, ...]:
    return (item.example, *(item.shots or ()))


def _frames(example: Example) -> Iterator[Any]:
    """The images of an example, a clip's frames among them."""
    for image in example.images:
        yield from frames_of(image)


def _told(item: Item, kept: dict[str, str]) -> tuple[tuple[object, ...], list[str]]:
    """All of an item: its texts, and the contents of its images, of which those of files are kept.

    The images that are asked about come first.
    """
    texts = [(e.question, e.answer, e.rationale, len(e.images)) for e in _examples(item)]
    contents = []
    for image in (i for e in _examples(item) for i in _frames(e)):
        if not isinstance(image, (str, Path)):
            contents.append(content_of(image))
            continue
        if str(image) not in kept:
            kept[str(image)] = content_of(image)
        contents.append(kept[str(image)])
    return (item.id, item.choices, item.accepted, item.group, item.class_name, texts), contents
