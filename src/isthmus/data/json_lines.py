"""Text files of a user's, read line by line, and the JSON in them. Pure: no torch.

A file is UTF-8, with or without a byte order mark. Lines end at line feeds and carriage returns
alone: U+2028, U+0085 and the like are characters of a text. A line that is not valid UTF-8 costs
that line, and not the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from isthmus.errors import ConfigError
from isthmus.prompts.prompt import lone_surrogate

EXPECTED = '{"question": "...", "answer": "..."}'
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def opened(path: Path, what: str = "", newline: str | None = None) -> Iterator[TextIO]:
    """Opens a text file; bytes that are no UTF-8 come as lone surrogates (see `not_utf8`).

    Args:
        path: The file.
        what: What is read from it, for messages: "questions".
        newline: As for `open`.

    Raises:
        ConfigError: If it cannot be read, or is UTF-16.
    """
    read = f"cannot read {what} from {path}" if what else f"cannot read {path}"
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] in _UTF16:
                raise ConfigError(f"{read}: it is UTF-16, and not UTF-8 text; save it as UTF-8")
            yield io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline)
    except OSError as error:
        raise ConfigError(f"{read}: {error.strerror or error}") from error


def not_utf8(text: str) -> str:
    """What is wrong with a text of `opened`, in words; empty if it is UTF-8."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        byte, before = ord(text[at]) - 0xDC00, text[max(0, at - 30) : at]
        return f"not UTF-8 text: got the byte 0x{byte:02X} after {before!r}; save the file as UTF-8"
    return ""


def json_lines(path: Path, what: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file with where each stands; a ConfigError says why one is none.

    Args:
        path: The file.
        what: As for `opened`.

    Raises:
        ConfigError: If the file as a whole cannot be read.
    """
    with opened(path, what) as file:
        for number, line in enumerate(file, 1):
            # Files that were joined by hand have a byte order mark within
            line = line.removeprefix("\ufeff").strip(" \t\r\n")
            if not line:
                continue
            where = f"{path}, line {number}"
            if wrong := not_utf8(line):
                yield where, ConfigError(wrong)
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                value = ConfigError(f"no JSON: {error}")
            yield where, value


def surrogate_in(value: Any, place: tuple[str | int, ...] = ()) -> tuple[tuple[Any, ...], str]:
    r"""The first text of a JSON value that is no Unicode: its place, and what is wrong.

    Example:
        >>> surrogate_in({"a": ["x", "\ud83d"]})[0]
        ('a', 1)
        >>> surrogate_in({"a": "x"})
        ((), '')
    """
    if isinstance(value, str):
        return (place, wrong) if (wrong := lone_surrogate(value)) else ((), "")
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        if wrong := next(filter(None, map(lone_surrogate, value)), ""):
            return place, f"a key is none: {wrong}"
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    for key, item in inside:
        found = surrogate_in(item, (*place, key))
        if found[1]:
            return found
    return (), ""


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSONL file of questions, with where it stands for messages.

    Raises:
        ConfigError: If the file is missing, or a line is no JSON object, or no Unicode; it names
            the line.
    """
    for where, row in json_lines(path, "questions"):
        if isinstance(row, ConfigError):
            raise ConfigError(f"{where} is {row}: expected {EXPECTED}")
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is not an object: expected {EXPECTED}")
        place, wrong = surrogate_in(row)
        if wrong:
            named = ".".join(map(str, place))
            raise ConfigError(f'{where}, "{named}": {wrong}')
        yield where, row
