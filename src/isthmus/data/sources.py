"""The one door for every format of data. Pure: no torch.

| source | how it is read |
|---|---|
| a folder of images | `folders`: texts beside them, a list, or a folder for each class |
| a folder of shards, JSONL or Parquet files and no images | all of them, in order |
| `.jsonl`, `.json` (a list), `.csv`, `.tsv`, `.parquet` | `rows`: one record a row |
| `.tar`, `shards/{000..009}.tar`, `shards/*.tar` | `shards`, lazily |
| a `datasets.Dataset`, or a folder that `save_to_disk` wrote | as a table, lazily |
| a sequence of `Record` | as it is |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from isthmus.data.folders import LISTS, is_left_out, read_folder, walk
from isthmus.data.json_lines import json_lines, not_utf8, opened
from isthmus.data.records import LazyRecords, ReadRecords, Record, as_records
from isthmus.data.rows import ANSWERS, EXPECTED, ONE_IMAGE, is_attachment, to_record
from isthmus.data.shards import Shards, find_files
from isthmus.data.tables import Joined, from_dataset, from_parquet, from_saved
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef
from isthmus.media.kinds import kinds

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CSV_TEXTS = (*ANSWERS, "title")
MOST_FIELD = 2**31 - 1
"""Characters of a field; more than a C long of Windows cannot be said."""
FORMS = f"a folder of images, tar shards, or a file of the kind {', '.join(TABLES)}"


def read_data(source: str | Path | Any, *, root: str | Path | None = None) -> Sequence[Record]:
    """Reads a data set of any form.

    Images are not opened; shards, Parquet files and `datasets.Dataset` read a record's text when
    it is asked for. A record that is none costs no other: what is wrong with it is raised when it
    is asked for.

    Args:
        source: A path (see the table above), a brace pattern or a glob, a `datasets.Dataset`, or
            a sequence of records.
        root: What `source` and the images' paths in a JSON, CSV or Parquet file are relative to;
            None is the current folder for `source` and the file's own for images. Lists in a
            folder of images are relative to themselves in any case.

    Raises:
        ConfigError: If it is missing, empty or of no known form, or a file of which no line is a
            record; the message names file and line.
        MissingExtraError: If `pyarrow` or `datasets` is needed and not installed.

    Example:
        >>> len(read_data([Record.of("a.jpg", "", "a dog")]))
        1
    """
    return _refuse_none(open_data(source, root=root))


def open_data(source: str | Path | Any, *, root: str | Path | None = None) -> Sequence[Record]:
    """As `read_data`, for what is to be checked: not a single record need be one.

    Args:
        source: As for `read_data`.
        root: As for `read_data`.

    Raises:
        ConfigError: If the source as a whole cannot be read.
        MissingExtraError: As for `read_data`.
    """
    base = None if root is None else Path(root)
    if hasattr(source, "column_names"):
        return from_dataset(source, "the dataset", base or Path())
    if isinstance(source, LazyRecords):
        return source
    if not isinstance(source, (str, Path)):
        if isinstance(source, Sequence) and all(isinstance(r, Record) for r in source):
            return cast(Sequence[Record], source)
        raise ConfigError(f"got {type(source).__name__} as a data set: expected a path, a dataset")
    found = find_files(source if base is None else base / source)
    if len(found) == 1 and found[0].is_dir():
        return _folder(found[0], base)
    return _files(found, base)


def _refuse_none(records: Sequence[Record]) -> Sequence[Record]:
    """The records, unless not a single one could be read."""
    if isinstance(records, ReadRecords):
        wrong = [entry for entry in records.entries if isinstance(entry, str)]
        if len(wrong) == len(records):
            more = f". None of the other {len(wrong) - 1} can be read either" * (len(wrong) > 1)
            raise ConfigError(f"{wrong[0]}{more}")
    return records


def read_records(path: str | Path, root: str | Path | None = None) -> list[Record]:
    """Reads a JSONL file of records.

    Args:
        path: The file.
        root: What the images' paths are relative to; None is the file's own folder.

    Raises:
        ConfigError: If the file is missing, or a line is not a record; the message names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no records at {file}: expected a JSONL file")
    return list(_read(json_lines(file), file, file.parent if root is None else Path(root)))


def _files(paths: Sequence[Path], root: Path | None) -> Sequence[Record]:
    """The records of files of one kind or of several."""
    tars = [path for path in paths if path.suffix.lower() == ".tar"]
    if len(tars) == len(paths):
        return Shards(tars)
    parts = [_file(path, path.parent if root is None else root) for path in paths]
    return parts[0] if len(parts) == 1 else Joined(parts)


def _file(path: Path, root: Path) -> Sequence[Record]:
    """The records of one file."""
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _read(json_lines(path), path, root)
        case ".json":
            return _json(path, root)
        case ".csv" | ".tsv":
            return _csv(path, root)
        case ".parquet":
            return from_parquet(path, root)
        case ".tar" | ".gz" | ".tgz" | ".bz2" | ".xz" | ".zst" if path.is_file():
            return Shards([path])  # which refuses what is compressed
    kind = "a folder" if path.is_dir() else f'"{path.suffix}"'
    raise ConfigError(f"{path} is {kind}: expected {FORMS}")


def _folder(folder: Path, root: Path | None) -> Sequence[Record]:
    """The records of a folder: of its images, or else of the files in it."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return from_saved(folder, root or folder)
    if any(any(map(is_attachment, files)) for _, files, _ in walk(folder)):
        return read_folder(folder, lambda path: _file(path, path.parent))
    files = [p for p in sorted(folder.iterdir()) if not is_left_out(p.name)]
    for kind in (".tar", ".parquet", ".jsonl"):
        chosen = [p for p in files if p.suffix.lower() == kind and p.name.lower() not in LISTS]
        if chosen:
            return _files(chosen, root)
    return read_folder(folder, lambda path: _file(path, path.parent))


# --- Files of rows -------------------------------------------------------------------------------


def _finder(root: Path) -> Callable[[str], FileRef]:
    return lambda name: FileRef(root / name)


def _read(rows: Iterable[tuple[str, Any]], path: Path, root: Path) -> Sequence[Record]:
    """The records of rows; what is wrong with a row stands in its place."""
    entries: list[Record | str] = []
    for origin, row in rows:
        if isinstance(row, ConfigError):
            entries.append(f"{origin} is not a record ({row}): expected {EXPECTED}")
            continue
        try:
            entries.append(to_record(row, _finder(root), origin))
        except ConfigError as error:
            entries.append(str(error))
    if not entries:
        raise ConfigError(f"{path} is empty: expected at least one record")
    return as_records(entries)


def _json(path: Path, root: Path) -> Sequence[Record]:
    """A list of rows, as LLaVA's files are, or one row a line."""
    with opened(path) as file:
        text = file.read()
    if not_utf8(text):
        return _read(json_lines(path), path, root)  # which names the line
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return _read(json_lines(path), path, root)
    listed = rows if isinstance(rows, list) else [rows]
    return _read(((f"{path}, entry {n}", row) for n, row in enumerate(listed, 1)), path, root)


def _csv(path: Path, root: Path) -> Sequence[Record]:
    """One record a row, under a line that names the columns."""
    return _read(_csv_rows(path), path, root)


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a CSV file as an object, and where it stands."""
    before = csv.field_size_limit(MOST_FIELD)  # an image in a field is longer than csv's 128 KiB
    try:
        with opened(path, newline="") as file:  # line breaks inside of quotes are the text's own
            first = file.readline()
            delimiter = _delimiter(first, path)
            reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
            columns = _columns(reader, path)
            while True:
                origin = f"{path}, line {reader.line_num + 1}"
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield origin, ConfigError(f"no CSV: {error}")
                    continue
                if values:
                    yield origin, _csv_row(values, columns)
    finally:
        csv.field_size_limit(before)


def _csv_row(values: list[str], columns: list[str]) -> dict[str, str] | ConfigError:
    if wrong := next(filter(None, map(not_utf8, values)), ""):
        return ConfigError(wrong)
    if len(values) != len(columns):
        return ConfigError(
            f"expected {len(columns)} columns, {', '.join(columns)}; got {len(values)}"
        )
    row = {key: value for key, value in zip(columns, values, strict=True) if value != ""}
    answers = [key for key in (*ANSWERS, "title") if key in columns]
    if answers and not row.keys() & set(answers):
        row[answers[0]] = ""  # no answer at all: a record still, which `check` counts
    return row


def _csv_images() -> tuple[str, ...]:
    """Names of columns that can hold an attachment."""
    others = [k for n, kind in kinds().items() if n not in ("image", "clip") for k in kind.keys]
    return (*ONE_IMAGE, "filepath", "video", *others)


def _delimiter(header: str, path: Path) -> str:
    """What stands between the columns: what the ending says, unless only another fits."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for candidate in (usual, ",", ";", "\t"):
        names = next(csv.reader([header], delimiter=candidate), [])
        if any(name.strip() in (*_csv_images(), *CSV_TEXTS) for name in names):
            return candidate
    return usual


def _columns(reader: Iterator[list[str]], path: Path) -> list[str]:
    """The names of the columns, of which at least one must be a text's."""
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ConfigError(f"{path}, line 1 cannot be read: {error}") from error
    if wrong := next(filter(None, map(not_utf8, columns)), ""):
        raise ConfigError(f"{path}, line 1 is {wrong}")
    told = (
        f"expected a line that names the columns, one for the image ({', '.join(_csv_images())}) "
        f"and one for its text ({', '.join(CSV_TEXTS)})"
    )
    if not columns:
        raise ConfigError(f"{path} is empty: {told}")
    images, texts = set(columns) & set(_csv_images()), set(columns) & set(CSV_TEXTS)
    if not texts or (not images and not {"text", "question"} & set(columns)):
        raise ConfigError(f"{path} has the columns {', '.join(columns):.300}: {told}")
    return columns
