"""Labelled images to audit with: from a folder of class folders, a file of rows, or memory.

Nothing that is wrong with one image stops an audit: it is left out, counted and named.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isthmus.auditing.rows import reopenable
from isthmus.classification.templates import checked_labels
from isthmus.data.json_lines import json_lines, opened
from isthmus.data.records import Record, entries_of
from isthmus.data.rows import ANSWERS, to_record
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, ImageError, InputError, suggestion
from isthmus.media.file_ref import FileRef
from isthmus.media.image import Source, content_hash, open_image
from isthmus.media.prefetch import prefetch

READERS = 2
"""Threads that open images."""
MOST_NAMED = 5
"""Things that a message names before it only counts the rest."""
_TEXTS = (*ANSWERS, "names", "question", "lead")


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        files: The images (n,), each as `open_image` takes it: paths of files, bytes of parts of
            files, or what was given.
        targets: Their classes (n,), numbers of `labels`.
        labels: The labels (C,); some may have no image.
        groups: By column, the group of each image (n,); None where a row says none.
        left_out: Why each image or row that was left out was; their number is its length.
        contents: A hash of each image's content (n,).
    """

    files: tuple[Source, ...]
    targets: tuple[int, ...]
    labels: tuple[str, ...]
    groups: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """SHA-256 of the images' contents, their classes and the labels, 16 hexadecimal digits.

        It is the same wherever files are kept and whatever they are called. Groups are not in it.
        """
        told = json.dumps([self.contents, self.targets, self.labels])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def select(self, images: Sequence[int]) -> LabelledImages:
        """Some of the images, by their numbers, with the same labels.

        Example:
            >>> data = LabelledImages(("a.png", "b.png"), (0, 1), ("cat", "dog"))
            >>> data.select([1]).files
            ('b.png',)
        """
        return replace(
            self,
            files=tuple(self.files[i] for i in images),
            targets=tuple(self.targets[i] for i in images),
            groups={name: tuple(own[i] for i in images) for name, own in self.groups.items()},
            contents=tuple(self.contents[i] for i in images if self.contents),
        )


def read_labelled(
    source: str | Path | Any,
    *,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    label: str | None = None,
    split: str | None = None,
    root: str | Path | None = None,
) -> LabelledImages:
    """Reads labelled images of any form that `isthmus.read_data` reads.

    Args:
        source: A folder with a folder for each class, a JSONL or CSV file with an image and its
            class in each row, or another form of data set.
        labels: The labels, in the order of their numbers; they must have all classes of the data.
            None for the classes of the data, sorted.
        groups: Columns of groups, such as "camera".
        label: The column that holds the class, where a JSONL or CSV file calls it otherwise than
            "name" or "text".
        split: Only rows that have this value in their column "split".
        root: As for `read_data`.

    Raises:
        InputError: If nothing can be read, there are no usable images or fewer than two labels, the
            labels lack a class of the data, or no row has a column that is asked for.

    Example:
        >>> from PIL import Image
        >>> for number, name in enumerate(["cat", "dog"]):
        ...     Path(name).mkdir()
        ...     Image.new("L", (4, 4), number).save(f"{name}/a.png")
        >>> data = read_labelled(".")
        >>> data.labels, data.targets
        (('cat', 'dog'), (0, 1))
    """
    entries = entries_of(read_data(source, root=root)) if label is None else None
    found = list(entries if entries is not None else _relabelled(source, str(label), root))
    records = [entry for entry in found if isinstance(entry, Record)]
    for column in (*groups, *([] if split is None else ["split"])):
        _refuse_unknown(column, records, source)
    if split is not None:
        kept = [r for r in records if str(r.extra.get("split")) == split]
        if not kept:
            splits = {str(r.extra["split"]) for r in records if r.extra.get("split") is not None}
            raise InputError(
                f'{source} has no images of the split "{split}": {suggestion(split, splits)}'
            )
        records = kept
    left_out = [entry for entry in found if isinstance(entry, str)]
    rows: list[tuple[Source | FileRef, str, Record]] = []
    for record in records:
        name = record.answer.strip()
        image = record.images[0] if len(record.images) == 1 else None
        if not isinstance(image, FileRef) or not record.turns or not name:
            left_out.append(f"{record.origin or source}: expected one image and its class")
        else:
            rows.append((image, name, record))
    return _labelled(
        [image for image, _, _ in rows],
        [name for _, name, _ in rows],
        labels,
        {c: [record.extra.get(c) for _, _, record in rows] for c in groups},
        left_out,
        str(source),
    )


def labelled_images(
    images: Sequence[Source],
    names: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
) -> LabelledImages:
    """Labelled images that are given one by one, as in a notebook.

    Args:
        images: Anything that `open_image` takes.
        names: The class of each.
        labels: As for `read_labelled`.
        groups: By column, the group of each image; None where it has none.

    Raises:
        InputError: As for `read_labelled`; or if there are not as many classes or groups as images.

    Example:
        >>> from PIL import Image
        >>> pictures = [Image.new("L", (4, 4), number) for number in range(2)]
        >>> labelled_images(pictures, ["cat", "dog"], groups={"camera": ["a", None]}).groups
        {'camera': ('a', None)}
    """
    columns = {name: list(own) for name, own in (groups or {}).items()}
    for what, own in (("classes", names), *columns.items()):
        if isinstance(own, str) or len(own) != len(images):
            got = "one text" if isinstance(own, str) else f"{len(own)} {what}"
            raise InputError(f"got {got} for {len(images)} images: expected one for each image")
    for column, own in columns.items():
        if all(_group(value) is None for value in own):
            raise InputError(f'no image has a group "{column}": give one, or leave it out')
    return _labelled(images, list(names), labels, columns, [], "the images given")


# --- From rows to images ------------------------------------------------------------------------


def _labelled(
    images: Sequence[Source | FileRef],
    names: Sequence[str],
    labels: Sequence[str] | None,
    groups: Mapping[str, Sequence[Any]],
    left_out: list[str],
    source: str,
) -> LabelledImages:
    """Opens each image, leaves out those that are none, and numbers the classes."""
    names = [str(name).strip() for name in names]
    known = checked_labels(sorted(set(names)) if labels is None else labels) if names else []
    if names and len(known) < 2:
        raise InputError(
            f'{source} has one label, "{known[0]}": expected at least two, a folder for each class '
            "or a file with an image and its class in each row"
        )
    missing = sorted(set(names) - set(known))
    if missing:
        raise InputError(
            f"the labels lack {_some(missing)}, of which {source} has images: add "
            f"{'it' if len(missing) == 1 else 'them'} to the labels, or leave the images out"
        )
    files, contents, kept = [], [], []
    with closing(prefetch(images, _opened, workers=READERS, ahead=4 * READERS)) as found:
        for number, (file, content, wrong) in enumerate(found):
            if wrong:
                left_out.append(wrong)
                continue
            files.append(file)
            contents.append(content)
            kept.append(number)
    if not files:
        why = f"; the first: {left_out[0]}" if left_out else ""
        raise InputError(f"{source} has no image that can be used, {len(left_out)} left out{why}")
    number_of = {name: number for number, name in enumerate(known)}
    return LabelledImages(
        files=tuple(files),
        targets=tuple(number_of[names[i]] for i in kept),
        labels=tuple(known),
        groups={c: tuple(_group(values[i]) for i in kept) for c, values in groups.items()},
        left_out=tuple(left_out),
        contents=tuple(contents),
    )


def _opened(image: Source | FileRef) -> tuple[Source, str, str]:
    """An image as `open_image` takes it, its content's hash, and what is wrong with it."""
    try:
        source = _source(image) if isinstance(image, FileRef) else reopenable(image)
        open_image(source)
        if isinstance(source, bytes):
            return source, hashlib.sha256(source).hexdigest(), ""
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                return source, hashlib.file_digest(file, "sha256").hexdigest(), ""
        return source, content_hash(source), ""
    except (ImageError, OSError, ValueError) as error:  # ValueError: a file that is closed
        return b"", "", str(error)


def _source(image: FileRef) -> Source:
    """What `open_image` takes: the path of a file, or the bytes of a part of one."""
    whole = image.data is None and image.start == 0 and image.size is None
    return image.path if whole else image.read()


def _group(value: Any) -> str | None:
    """The name of a group; empty text is none."""
    return None if value is None or not str(value).strip() else str(value).strip()


def _refuse_unknown(column: str, records: Sequence[Record], source: Any) -> None:
    if any(_group(record.extra.get(column)) is not None for record in records):
        return
    known = sorted({str(key) for record in records for key in record.extra})
    has = f"its rows have {', '.join(known)}" if known else "its rows have an image and a class"
    raise InputError(f'no row of {source} has a "{column}": {has}; name one of its columns')


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return shown + more


# --- Rows with a column of classes of another name ------------------------------------------------


def _relabelled(source: Any, label: str, root: str | Path | None) -> Iterator[Record | str]:
    """The records of rows whose class is in a named column, or what is wrong with them."""
    path = Path(source) if root is None else Path(root) / source
    folder = path.parent if root is None else Path(root)
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        raise ConfigError(
            f"{source} is not a JSONL or CSV file: expected one, with the class in the column "
            f'"{label}"'
        )
    json_rows = ending in (".jsonl", ".ndjson")
    rows = list(json_lines(path) if json_rows else _csv_rows(path, ending))
    if not any(isinstance(row, Mapping) and _group(row.get(label)) for _, row in rows):
        columns = sorted({str(key) for _, row in rows if isinstance(row, Mapping) for key in row})
        raise ConfigError(
            f'no row of {source} has a class in the column "{label}": {suggestion(label, columns)}'
        )
    for origin, row in rows:
        name = _group(row.get(label)) if isinstance(row, Mapping) else None
        if name is None:
            why = f"{row}; " if isinstance(row, ConfigError) else ""
            yield f'{origin}: {why}expected an object with a class in "{label}"'
            continue
        told = {key: value for key, value in row.items() if key not in _TEXTS}
        try:
            yield to_record(told | {"name": name}, lambda file: FileRef(folder / file), origin)
        except ConfigError as error:
            yield str(error)


def _csv_rows(path: Path, ending: str) -> Iterable[tuple[str, Any]]:
    with opened(path, newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if ending == ".tsv" else ",")
        try:
            for row in reader:
                told = {k: v for k, v in row.items() if k is not None and v not in (None, "")}
                yield f"{path}, line {reader.line_num}", told
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num} cannot be read: {error}") from error
