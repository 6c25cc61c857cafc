"""Tables of which one row is read at a time: Parquet and Hugging Face datasets. Pure: no torch."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from isthmus.data.records import LazyRecords, Record
from isthmus.data.rows import to_record
from isthmus.errors import ConfigError, MissingExtraError
from isthmus.media.file_ref import FileRef


class Table(Protocol):
    """TableRows by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class TableRows(LazyRecords):
    """The records of a table, each made when it is asked for.

    `rows[i]` raises ConfigError if a row is not a record; it names the row, counted from 1.

    Args:
        table: The rows.
        name: What to call the table in messages.
        root: What images' paths are relative to.
        labels: Names of the classes of an integer column `label`.
    """

    def __init__(self, table: Table, name: str, root: Path, labels: Sequence[str] = ()) -> None:
        if not len(table):
            raise ConfigError(f"{name} is empty: expected at least one record")
        self._table, self._name, self._root, self._labels = table, name, root, labels

    def __len__(self) -> int:
        return len(self._table)

    def record_at(self, index: int) -> Record:
        """The record, made now."""
        origin = f"{self._name}, row {index + 1}"
        try:
            # Columns that other rows use are None here
            row = {k: v for k, v in self._table[index].items() if v is not None}
        except (OSError, ValueError) as error:  # an image that the table decodes is damaged
            raise ConfigError(f"{origin} cannot be read: {error}") from error
        if self._labels and isinstance(row.get("label"), int) and row["label"] >= 0:
            row["name"] = self._labels[row.pop("label")].replace("_", " ")
        return to_record(row, lambda name: FileRef(self._root / name), origin)


class Joined(LazyRecords):
    """Several data sets, one after the other.

    Args:
        parts: The data sets.
    """

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record_at(self, index: int) -> Record:
        """The record of one of the parts."""
        number = bisect.bisect_right(self._ends, index)
        part = self._parts[number]
        return part[index - self._ends[number] + len(part)]


class _Arrow:
    """TableRows of an Arrow table, of which only the one asked for becomes Python objects."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._table.slice(index, 1).to_pylist()[0]
        return row


def from_parquet(path: Path, root: Path) -> TableRows:
    """The records of a Parquet file; images are paths, or structs of `bytes` and `path`.

    Raises:
        ConfigError: If the file is damaged or empty.
        MissingExtraError: If pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError(f"reading {path}, a Parquet file,", "train") from None
    try:
        table = parquet.read_table(path, memory_map=True)
    except (OSError, ValueError) as error:  # pyarrow's own errors are these
        raise ConfigError(f"{path} is not a Parquet file: {error}") from error
    return TableRows(_Arrow(table), str(path), root)


def from_dataset(dataset: Any, name: str, root: Path) -> TableRows:
    """The records of a `datasets.Dataset`; a column `label` of classes gives the names.

    Raises:
        ConfigError: If it is several splits, or a stream.
    """
    if isinstance(dataset, Mapping):
        raise ConfigError(f"{name} has the splits {', '.join(dataset)}: choose one")
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ConfigError(f"{name} is a stream, of unknown length: expected a datasets.Dataset")
    labels = getattr((dataset.features or {}).get("label"), "names", None)
    return TableRows(dataset, name, root, labels or ())


def from_saved(folder: Path, root: Path) -> TableRows:
    """The records of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        ConfigError: If it holds several splits.
        MissingExtraError: If datasets is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        raise ConfigError(f"{folder} has the splits {', '.join(splits)}: name one, as a folder")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError(f"reading {folder}, a saved dataset,", "train") from None
    return from_dataset(datasets.load_from_disk(str(folder)), str(folder), root)
