'''Demonstrations in a file that a person can read, edit and use again.

TOML, one table for each:

    [[example]]
    images = ["cats.jpg"]
    question = "How many cats are there?"
    rationale = """
    One on the sofa.
    One on the floor."""
    answer = "2"
    made = { by = "auto-cot", seed = 0, cluster = 3 }

Images are paths relative to the file; `made` says where an example comes from, and may be left
out.
'''

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isthmus.demonstrations.rationales import Worked
from isthmus.errors import InputError
from isthmus.files import write_text
from isthmus.media.fetch import is_url
from isthmus.media.image import content_hash, open_image
from isthmus.prompts.prompt import Example

_TEXTS = ("question", "rationale", "answer")
_KEYS = {"images", "made", *_TEXTS}
_HEADER = re.compile(r"\s*\[\[\s*example\s*\]\]")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _string(text: str) -> str:
    """A TOML string; one with lines of its own over several, so that it can be read."""
    if "\n" not in text:
        return f'"{_escaped(text)}"'
    *lines, last = text.split("\n")
    shown = [_escaped(line) if '""' in line else _with_quotes(_escaped(line)) for line in lines]
    # quotes at the very end would run into those that close the string
    odd = '""' in last or last.endswith('"')
    shown.append(_escaped(last) if odd else _with_quotes(_escaped(last)))
    return '"""\n' + "\n".join(shown) + '"""'


def _escaped(line: str) -> str:
    """A line with JSON's escapes, which are TOML's but for the delete character."""
    return json.dumps(line, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")


def _with_quotes(escaped: str) -> str:
    """The line with its quotes as they are; escapes are taken in pairs, as they were made."""
    return re.sub(r"\\(.)", lambda pair: '"' if pair[1] == '"' else pair[0], escaped)


def write_examples(path: str | Path, examples: Iterable[Example | Worked]) -> None:
    """Writes demonstrations, all or nothing.

    Images that are files keep their paths, relative to the new file where they can; others are
    written beside it, by the hash of their content.

    Args:
        path: The file.
        examples: Demonstrations, with what is said of how they were made.

    Raises:
        InputError: If an example has no answer, there is none at all, or an image is an address.
        ImageError: If an image cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "shots.toml"
        >>> write_examples(path, [Example((), "2 + 3?", "5", "2 and 3 more is 5.")])
        >>> read_examples(path)[0].rationale
        '2 and 3 more is 5.'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for entry in examples:
        example = entry.example if isinstance(entry, Worked) else entry
        if example.answer is None:
            raise InputError(f'the demonstration "{example.question[:60]}" has no answer: give one')
        lines = ["[[example]]"]
        if example.images:
            names = [_string(_beside(path, image)) for image in example.images]
            lines.append(f"images = [{', '.join(names)}]")
        for key in _TEXTS:
            text = getattr(example, key)
            if text is not None:
                lines.append(f"{key} = {_string(text)}")
        if isinstance(entry, Worked) and entry.made:
            made = ", ".join(f"{_key(key)} = {_value(value)}" for key, value in entry.made.items())
            lines.append(f"made = {{ {made} }}")
        blocks.append("\n".join(lines))
    if not blocks:
        raise InputError(f"no demonstrations to write to {path}: expected at least one")
    write_text(path, "\n\n".join(blocks) + "\n")


def _key(name: str) -> str:
    """A TOML key, in quotes where it must be."""
    return name if _BARE.fullmatch(name) else f'"{_escaped(name)}"'


def _value(value: str | float) -> str:
    """A text on one line, since tables on one line hold no others, or a number."""
    return f'"{_escaped(value)}"' if isinstance(value, str) else repr(value)


def _beside(path: Path, image: Any) -> str:
    """An image's path as the file names it.

    Raises:
        InputError: If it is an address.
    """
    if isinstance(image, str) and is_url(image):
        raise InputError(f"{image} is an address: save the image and name its file")
    if isinstance(image, (str, Path)):
        return Path(os.path.relpath(Path(image).absolute(), path.parent.absolute())).as_posix()
    opened = open_image(image)
    folder = path.parent / f"{path.stem}-images"
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
        The examples, images as paths that can be opened from here.

    Raises:
        InputError: If the file is missing or not as described, or an image is; the message says
            where.
    """
    return [worked.example for worked in read_worked(path)]


def read_worked(path: str | Path) -> list[Worked]:
    """Demonstrations of a file with what it says of how each was made.

    `write_examples` writes them again as they were.

    Args:
        path: The file.

    Raises:
        InputError: As for `read_examples`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
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
    starts = [n for n, line in enumerate(text.split("\n"), 1) if _HEADER.match(line)]
    known = len(starts) == len(listed)  # a rationale may have a line that looks like a header
    return [
        _worked(entry, path, f"{path}, " + (f"line {starts[i]}" if known else f"example {i + 1}"))
        for i, entry in enumerate(listed)
    ]


def _worked(entry: Any, path: Path, where: str) -> Worked:
    """One table as an example.

    Raises:
        InputError: If it is not as described.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an [[example]] table, got {entry!r}")
    if unknown := sorted(set(entry) - _KEYS):
        raise InputError(
            f'{where}: unknown key "{unknown[0]}", expected {", ".join(sorted(_KEYS))}'
        )
    for key in _TEXTS:
        if not isinstance(entry.get(key, ""), str):
            raise InputError(f"{where}: {key} must be a text in quotes, got {entry[key]!r}")
    if "answer" not in entry:
        raise InputError(f"{where}: a demonstration needs an answer")
    made = entry.get("made", {})
    plain = isinstance(made, dict) and all(
        isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in made.values()
    )
    if not plain:
        raise InputError(f'{where}: made must be like {{ by = "hand", seed = 0 }}, got {made!r}')
    images = entry.get("images", [])
    if not isinstance(images, list) or not all(isinstance(p, str) for p in images):
        raise InputError(f"{where}: images must be a list of paths, got {images!r}")
    for name in images:
        if is_url(name):
            raise InputError(f"{where}: {name} is an address: save the image and name its file")
        if not (path.parent / name).is_file():
            raise InputError(
                f"{where}: no image at {path.parent / name}; paths are relative to the folder of "
                "the file"
            )
    example = Example(
        tuple(path.parent / p for p in images),
        entry.get("question", ""),
        entry["answer"],
        entry.get("rationale"),
    )
    return Worked(example, made)
