r"""What the verbs print: one way for all, whatever the encoding of the terminal or pipe.

A file's name need not be UTF-8, and a terminal need not know every character. Neither may cost a
result: in JSON such a character is written as `\uXXXX`, elsewhere with a backslash too.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any


def prepare_streams() -> None:
    """Lets stdout and stderr write what their encoding lacks with backslashes, and never fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and callers may have put others there
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON on stdout."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # the escapes of JSON, and not Python's: it must stay JSON
        text = json.dumps(value)
    print(text)


def print_error(error: object) -> None:
    """Prints an error as one line on stderr."""
    print(f"error: {' '.join(printable(str(error)).split())}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with backslashes for what is no Unicode, such as bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()
