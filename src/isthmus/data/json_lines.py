"""Objects of a JSONL file, with where they stand. Pure: no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError

EXPECTED = '{"question": "...", "answer": "..."}'


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSONL file, with where it stands for messages.

    Raises:
        ConfigError: If the file is missing, or a line is no JSON object; it names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read questions from {path}: {why}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is no JSON ({error}): expected {EXPECTED}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is no object: expected {EXPECTED}")
        yield where, row
