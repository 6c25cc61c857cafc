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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from isthmus.data.folders import LISTS, read_folder, walk
from isthmus.data.records import ImageRef, Record
from isthmus.data.rows import ANSWERS, EXPECTED, is_image, to_record
from isthmus.data.shards import Shards, find_files
from isthmus.data.tables import Joined, from_dataset, from_parquet, from_saved
from isthmus.errors import ConfigError

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
FORMS = f"a folder of images, tar shards, or a file of the kind {', '.join(TABLES)}"


def read_data(source: str | Path | Any, *, root: str | Path | None = None) -> Sequence[Record]:
    """Reads a data set of any form.

    Images are not opened; shards, Parquet files and `datasets.Dataset` read a record's text when
    it is asked for, and what is wrong with it is raised then.

    Args:
        source: A path (see the table above), a brace pattern or a glob, a `datasets.Dataset`, or
            a sequence of records.
        root: What `source` and the images' paths in a JSON, CSV or Parquet file are relative to;
            None is the current folder for `source` and the file's own for images. Lists in a
            folder of images are relative to themselves in any case.

    Raises:
        ConfigError: If it is missing, empty or of no known form, or a record is none; the message
            names file and line.
        MissingExtraError: If `pyarrow` or `datasets` is needed and not installed.

    Example:
        >>> len(read_data([Record.of("a.jpg", "", "a dog")]))
        1
    """
    base = None if root is None else Path(root)
    if hasattr(source, "column_names"):
        return from_dataset(source, "the dataset", base or Path())
    if not isinstance(source, (str, Path)):
        if isinstance(source, Sequence) and all(isinstance(r, Record) for r in source):
            return cast(Sequence[Record], source)
        raise ConfigError(f"got {type(source).__name__} as a data set: expected a path, a dataset")
    found = find_files(source if base is None else base / source)
    if len(found) == 1 and found[0].is_dir():
        return _folder(found[0], base)
    return _files(found, base)


def read_records(path: str | Path, root: str | Path | None = None) -> list[Record]:
    """Reads a JSONL file of records.

    Args:
        path: The file.
        root: What the images' paths are relative to; None is the file's own folder.

    Raises:
        ConfigError: If the file is missing, or a line is no record; the message names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no records at {file}: expected a JSONL file")
    return _jsonl(file, file.parent if root is None else Path(root))


def _files(paths: Sequence[Path], root: Path | None) -> Sequence[Record]:
    """The records of files of one kind or of several."""
    tars = [path for path in paths if path.suffix == ".tar"]
    if len(tars) == len(paths):
        return Shards(tars)
    parts = [_file(path, path.parent if root is None else root) for path in paths]
    return parts[0] if len(parts) == 1 else Joined(parts)


def _file(path: Path, root: Path) -> Sequence[Record]:
    """The records of one file."""
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _jsonl(path, root)
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
    if any(any(map(is_image, files)) for _, files, _ in walk(folder)):
        return read_folder(folder, lambda path: list(_file(path, path.parent)))
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    for kind in (".tar", ".parquet", ".jsonl"):
        chosen = [p for p in files if p.suffix == kind and p.name not in LISTS]
        if chosen:
            return _files(chosen, root)
    return read_folder(folder, lambda path: list(_file(path, path.parent)))


# --- Files of rows -------------------------------------------------------------------------------


def _finder(root: Path) -> Callable[[str], ImageRef]:
    return lambda name: ImageRef(root / name)


def _some(records: list[Record], path: Path) -> list[Record]:
    if not records:
        raise ConfigError(f"{path} is empty: expected at least one record")
    return records


def _jsonl(path: Path, root: Path) -> list[Record]:
    records: list[Record] = []
    for number, line in _lines(path):
        origin = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{origin} is no record ({error}): expected {EXPECTED}") from error
        records.append(to_record(row, _finder(root), origin))
    return _some(records, path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 after line {number}: {error.reason}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _json(path: Path, root: Path) -> list[Record]:
    """A list of rows, as LLaVA's files are, or one row a line."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        return _jsonl(path, root)
    if not isinstance(rows, list):
        rows = [rows]
    return _some(
        [to_record(r, _finder(root), f"{path}, entry {n}") for n, r in enumerate(rows, 1)], path
    )


def _csv(path: Path, root: Path) -> list[Record]:
    records: list[Record] = []
    try:
        # newline="": line breaks inside of quotes are the text's own
        with path.open(encoding="utf-8-sig", newline="") as file:
            tabs = path.suffix.lower() == ".tsv"
            reader = csv.DictReader(file, delimiter="\t" if tabs else ",", strict=True)
            for values in reader:
                origin = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise ConfigError(
                        f"{origin} is no record: expected {len(reader.fieldnames or ())} columns, "
                        f"{', '.join(reader.fieldnames or ())}"
                    )
                row = {key: value for key, value in values.items() if value != ""}
                answers = [key for key in ANSWERS if key in values]
                if answers and not row.keys() & set(answers):
                    row[answers[0]] = ""  # no answer at all: a record still, which `check` counts
                records.append(to_record(row, _finder(root), origin))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} after record {len(records)}: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    return _some(records, path)
