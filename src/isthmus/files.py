"""Writing files so that no reader ever sees half of one. Pure: no torch.

A file is written under a temporary name in its own folder, brought to the disk, and renamed. A
process that is killed, or a disk that is full, leaves what was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from isthmus.errors import OutputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name, syncs it and renames it.

    Args:
        path: The file; its folder is made if missing.
        write: Writes the content to the path that it gets.

    Raises:
        OutputError: If it cannot be written. What was there before is untouched, and nothing
            half-written remains.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda p: p.write_text("a"))
        >>> [p.name for p in folder.iterdir()]
        ['a.txt']
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)  # temporary files are private; a saved model is not
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        told = OutputError(
            f"cannot write {path}: {error}; free some space or choose another folder "
            "(what was there before is untouched)"
        )
        told.errno = getattr(error, "errno", None)
        raise told from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, as `write_atomically` does.

    Half of a surrogate pair, as a file's name may hold, is written with a backslash.
    """
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda p: p.write_bytes(data))


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file with two spaces of indentation, as `write_atomically` does.

    Half of a surrogate pair, as a file's name may hold, is written as JSON's escape of it.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def content_key(data: bytes) -> str:
    """A file's content as 32 hexadecimal digits of its SHA-256.

    Example:
        >>> content_key(b"abc")
        'ba7816bf8f01cfea414140de5dae2223'
    """
    return hashlib.sha256(data).hexdigest()[:32]


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # Windows syncs neither folders nor files that are open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
