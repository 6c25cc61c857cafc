"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from isthmus.errors import OutputError
from isthmus.files import sync


def free_place(target: Path) -> Path:
    """The folder, if nothing stands there.

    Raises:
        OutputError: If something does.
    """
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(
            f"{target} holds something already: nothing was written; name a new or empty folder"
        )
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file: name a new or empty folder")
    return target


def refuse_full_disk(target: Path, size: int) -> None:
    """Refuses a disk without room for so many bytes.

    Raises:
        OutputError: If there is not enough.
    """
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size + (16 << 20):  # tokenizer and configurations
        raise OutputError(
            f"{target} needs {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: make "
            "room, name a folder on another disk, or take a smaller --dtype"
        )


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new folder beside another, which takes its place if nothing is raised.

    Args:
        target: The place, free or an empty folder.

    Raises:
        OutputError: If it cannot be written; nothing is left then.

    Example:
        >>> out = Path(tempfile.mkdtemp()) / "out"
        >>> with appearing(out) as folder:
        ...     _ = (folder / "a.txt").write_text("a")
        ...     out.exists()
        False
        >>> [path.name for path in out.iterdir()]
        ['a.txt']
    """
    above = [place for place in target.absolute().parents if not place.exists()]
    written = None
    try:
        written = _beside(target)
        yield written
        _rename(written, target)
    finally:
        if written is not None:
            shutil.rmtree(written, ignore_errors=True)
        if not target.exists():
            with suppress(OSError):  # one that is not there, or not empty
                for place in above:
                    place.rmdir()


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Makes an error of ours of a disk that is full, or the like."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {target}: {error}; nothing was kept. Free some space or name another "
            "folder"
        ) from error


def _beside(target: Path) -> Path:
    """A new folder beside another, on the same disk."""
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}; name another folder") from error
    made = Path(name)
    made.chmod(0o755)  # temporary folders are private; an exported model is not
    return made


def _rename(written: Path, target: Path) -> None:
    """Gives a folder its name, once all of it is on the disk."""
    try:
        for path in written.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # some writers make files private
                sync(path)
        if target.exists():
            target.rmdir()
        written.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}; name another folder") from error
