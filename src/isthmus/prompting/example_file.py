'''Demonstrations in a file that a person can read, edit and use again.

TOML, one table for each:

    [[example]]
    pictures = ["cats.jpg"]
    question = "How many cats are there?"
    rationale = """
    One on the sofa.
    One on the floor."""
    answer = "2"
    made = { by = "auto-cot", seed = 0, cluster = 3 }

Pictures are paths beside the file; `made` says where an example comes from, and may be left out.
'''

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isthmus.errors import InputError
from isthmus.images import content_hash, open_picture
from isthmus.prompt import Example
from isthmus.prompting.rationales import Worked

_TEXTS = ("question", "rationale", "answer")
_KEYS = {"pictures", "made", *_TEXTS}


def _string(text: str) -> str:
    """A TOML string; one with lines of its own over several, so that it can be read."""
    plain = json.dumps(text, ensure_ascii=False)  # JSON's escapes are TOML's
    plain = plain.replace("\x7f", "\\u007f")
    if "\n" not in text:
        return plain
    lines = plain[1:-1].replace("\\n", "\n").replace('\\"', '"').replace('"""', '""\\"')
    if lines.endswith('"'):
        lines = lines[:-1] + '\\"'
    return f'"""\n{lines}"""'


def write_examples(path: str | Path, examples: Iterable[Example | Worked]) -> None:
    """Writes demonstrations, all or nothing.

    Pictures that are files keep their paths, relative to the new file where they can; others are
    written beside it, by the hash of their content.

    Args:
        path: The file.
        examples: Demonstrations, with what is said of how they were made.

    Raises:
        PictureError: If a picture cannot be read.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for entry in examples:
        example = entry.example if isinstance(entry, Worked) else entry
        lines = ["[[example]]"]
        if example.pictures:
            names = [_string(_beside(path, picture)) for picture in example.pictures]
            lines.append(f"pictures = [{', '.join(names)}]")
        for key in _TEXTS:
            text = getattr(example, key)
            if text is not None:
                lines.append(f"{key} = {_string(text)}")
        if isinstance(entry, Worked) and entry.made:
            made = ", ".join(
                f"{key} = {_string(value) if isinstance(value, str) else value}"
                for key, value in entry.made.items()
            )
            lines.append(f"made = {{ {made} }}")
        blocks.append("\n".join(lines))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    temporary.replace(path)


def _beside(path: Path, picture: Any) -> str:
    """A picture's path as the file names it."""
    if isinstance(picture, (str, Path)):
        return Path(os.path.relpath(Path(picture).absolute(), path.parent.absolute())).as_posix()
    opened = open_picture(picture)
    folder = path.parent / f"{path.stem}-pictures"
    folder.mkdir(exist_ok=True)
    name = f"{content_hash(opened)[:16]}.png"
    if not (folder / name).exists():
        opened.save(folder / name)
    return f"{folder.name}/{name}"


def read_examples(path: str | Path) -> list[Example]:
    """Demonstrations of a file.

    Args:
        path: The file.

    Returns:
        The examples, pictures as paths that can be opened from here.

    Raises:
        InputError: If the file is missing or not as described; the message says where.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: expected a file of demonstrations") from error
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    listed = entries.get("example")
    if not isinstance(listed, list) or set(entries) != {"example"}:
        raise InputError(
            f"{path} has {', '.join(sorted(entries)) or 'nothing'} at its top: expected "
            "[[example]] tables and nothing else"
        )
    starts = [n for n, line in enumerate(text.splitlines(), 1) if line.strip() == "[[example]]"]
    return [
        _example(entry, path, f"{path}, line {starts[i]}" if i < len(starts) else str(path))
        for i, entry in enumerate(listed)
    ]


def _example(entry: Any, path: Path, where: str) -> Example:
    """One table as an example.

    Raises:
        InputError: If it is not as described.
    """
    if unknown := sorted(set(entry) - _KEYS):
        raise InputError(
            f'{where}: unknown key "{unknown[0]}", expected {", ".join(sorted(_KEYS))}'
        )
    for key in _TEXTS:
        if not isinstance(entry.get(key, ""), str):
            raise InputError(f"{where}: {key} must be a text in quotes, got {entry[key]!r}")
    if "answer" not in entry:
        raise InputError(f"{where}: a demonstration needs an answer")
    pictures = entry.get("pictures", [])
    if not isinstance(pictures, list) or not all(isinstance(p, str) for p in pictures):
        raise InputError(f"{where}: pictures must be a list of paths, got {pictures!r}")
    return Example(
        tuple(path.parent / p for p in pictures),
        entry.get("question", ""),
        entry["answer"],
        entry.get("rationale"),
    )
