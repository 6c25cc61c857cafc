"""Records of an evaluation: one line for each question of each arm, written as answers come.

`config.json` says what was asked for and with which weights, `records.jsonl` what came out. A run
into the same folder goes on behind the last whole line; one that asks for something else is
refused, since its records would not belong together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError
from isthmus.files import write_text

CONFIG, RECORDS, IMAGES = "config.json", "records.jsonl", "images"


@dataclass(frozen=True)
class Answered:
    """One question of one arm, answered.

    Attributes:
        arm: The arm's id.
        item: The item's id.
        prompt: The exact prompt, `<image>` where an image stood.
        images: Path or content hash of each image of the prompt, in order.
        text: What the model wrote, or the likeliest of the closed answers.
        parsed: The answer found in it; None if none was.
        expected: The right answer.
        right: What it is worth, 0 to 1.
        prompt_tokens: Tokens of the prompt, visual tokens in the text included.
        cached_tokens: How many of these were not computed anew.
        new_tokens: Tokens written, or scored.
        seconds: Its share of the time that its batch took.
        scores: Log-probability of each closed answer, where answers were scored.
        rationale: The steps written before the answer.
        agreement: Share of sampled answers that agree with the one taken, where several were drawn.
        question: The question, for people who read the records.
        usual: The most common answer among the demonstrations; None without any.
    """

    arm: str
    item: str
    prompt: str
    images: tuple[str, ...]
    text: str
    parsed: str | None
    expected: str
    right: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    seconds: float
    scores: dict[str, float] = field(default_factory=dict)
    rationale: str | None = None
    agreement: float | None = None
    question: str = ""
    usual: str | None = None
    group: str = ""


class Records:
    """The records of an evaluation, in memory and, with a folder, on disk.

    Args:
        folder: Where to; None keeps them in memory only.
        config: What was asked for; must be what an earlier run into the folder asked for.

    Raises:
        ConfigError: If the folder holds another evaluation, or something else; the message names
            the first difference.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.rows: dict[tuple[str, str], Answered] = {}
        self._file: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(config))
        kept = folder / CONFIG
        if kept.is_file():
            _same(_read_config(kept), plain, folder)
        elif (folder / RECORDS).exists():
            raise ConfigError(f"{folder} has {RECORDS} but no {CONFIG}: choose another --out")
        else:
            text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
            write_text(kept, text)
        path = folder / RECORDS
        for row in read(path):
            self.rows[row.arm, row.item] = row
        # An image's name need not be UTF-8: what is not is written as JSON's escape of it
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.rows

    def add(self, rows: Sequence[Answered]) -> None:
        """Adds answered questions; they are on disk when this returns."""
        for row in rows:
            self.rows[row.arm, row.item] = row
        if self._file is not None:
            for row in rows:
                self._file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def of(self, arm: str, items: Sequence[str]) -> list[Answered]:
        """An arm's records in the order of the items, those that there are."""
        return [self.rows[arm, item] for item in items if (arm, item) in self.rows]

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[Answered]:
    """The records of a file; a line that was cut short by a kill is cut off.

    Raises:
        ConfigError: If a line in the middle is damaged; the message names it.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
            values["images"] = tuple(values["images"])
            rows.append(Answered(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}, line {number} is not a record ({error}): remove the line, or choose "
                "another --out"
            ) from error
    return rows


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}): choose another --out") from error


def _same(before: Any, now: Any, folder: Path) -> None:
    """Refuses to go on with another configuration."""
    found = difference(before, now)
    if found:
        where, old, new = found
        raise ConfigError(
            f"{folder} holds an evaluation with {where} = {json.dumps(old, ensure_ascii=False)}, "
            f"this one has {json.dumps(new, ensure_ascii=False)}: its records would not belong "
            "together; choose another --out, or ask for the same"
        )


def difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, with both values.

    Example:
        >>> difference({"a": [1, 2]}, {"a": [1, 3]})
        ('a[1]', 2, 3)
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            found = difference(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (a, b) in enumerate(zip(before, now, strict=True)):
            found = difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    return None if before == now else (where, before, now)
