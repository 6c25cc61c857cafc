"""Kinds of attachments: what data sets and messages call them, and how their files are opened.

A kind is the part of a medium that needs no model, so that data can be read and checked without
one; `model.media` has the rest. Images and clips are built in. Another kind is registered where it
is defined:

    @KINDS.register("sound")
    class Sound: ...

or offered by a package as an entry point of the group "isthmus.kinds". Pure: no torch.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from isthmus.config.registry import Registry
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef

log = logging.getLogger(__name__)


class Kind(Protocol):
    """One kind of attachment; a class whose attributes are read, never an instance.

    Attributes:
        tag: What stands for one in texts that people write: "<image>".
        keys: What rows of a data set call it: `{"image": "cat.jpg", ...}`. A row may have one, or a
            list of them.
        parts: Types of the parts of a message that hold one.
        endings: How its files are called, in lower case.
    """

    tag: str
    keys: tuple[str, ...]
    parts: tuple[str, ...]
    endings: tuple[str, ...]

    @staticmethod
    def open(data: bytes) -> Any:
        """What the bytes of a file hold; `isthmus data check` opens each so.

        Raises:
            MediaError: If they hold none.
        """
        ...


ATTRIBUTES = ("tag", "keys", "parts", "endings")

KINDS = Registry("kind", package="isthmus.media", group="isthmus.kinds", method="open")
"""All kinds by name."""


@cache
def _offered() -> dict[str, type[Kind]]:
    """What installed packages offer; asked of the environment once.

    Every data set is read by way of this, so a broken package costs its own kinds alone.
    """
    found: dict[str, type[Kind]] = {}
    broken: dict[str, str] = {}
    for name in KINDS.offered():
        try:
            kind = KINDS.find(name)
            if missing := [key for key in ATTRIBUTES if not hasattr(kind, key)]:
                raise ConfigError(f'the kind "{name}" has no {" and no ".join(missing)}')
            found[name] = kind
        except ConfigError as error:
            broken.setdefault(KINDS.package_of(name), str(error))
    for package, why in broken.items():
        log.warning("kinds of the package %s are left out: %s", package, why)
    return found


def kinds() -> dict[str, type[Kind]]:
    """All kinds by name.

    Example:
        >>> {name: kind.tag for name, kind in kinds().items()}
        {'clip': '<video>', 'image': '<image>'}
    """
    return KINDS.built_in() | _offered()


def kind_of(medium: FileRef | tuple[FileRef, ...]) -> str:
    """The kind of an attachment by name; what stands in a tuple are a clip's frames."""
    return "clip" if isinstance(medium, tuple) else medium.kind


def kind_named(name: str | os.PathLike[str]) -> str | None:
    """The kind of a file by its ending; None if it is no attachment.

    Example:
        >>> kind_named("Cat.JPG"), kind_named("notes.txt")
        ('image', None)
    """
    ending = os.path.splitext(name)[1].lower()
    return next((name for name, kind in kinds().items() if ending in kind.endings), None)


def reference(path: Path) -> FileRef:
    """A file as an attachment of the kind that its ending says, an image if it says none."""
    return FileRef(path, kind=kind_named(path) or "image")
