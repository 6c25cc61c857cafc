"""Which drawings of emoji may be shown where: what is held out for dev and test stays out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from things import Things, listing


def without_held_out(records: Iterable[dict[str, Any]], root: Path) -> Iterator[dict[str, Any]]:
    """The records of emoji without those of a thing held out for dev or test, in any style.

    A thing is held out under all its names: a record goes where one of its own is among them.
    """
    held_out = [row for row in listing(root) if row["part"] != "train"]
    concepts = {code for row in held_out for code in row["concepts"]}
    names = {name for row in held_out for name in (row["name"], *row["names"])}
    for record in records:
        known = {record["name"], *record.get("names", ())}
        if record["concept"] not in concepts and not known & names:
            yield record


def objects(records: Iterable[dict[str, Any]], root: Path) -> Iterator[dict[str, Any]]:
    """The drawings of objects among them, for episodes."""
    yield from (row for row in without_held_out(records, root) if row["object_like"])


def of_categories(records: Iterable[dict[str, Any]], root: Path) -> Iterator[dict[str, Any]]:
    """Drawings named by what they are, "animal": episodes of them show a rule, not a thing."""
    known = {row["name"]: row for row in listing(root) if not row["unclear"]}
    for record in without_held_out(records, root):
        row = known.get(record["name"])
        if row is not None and len(row["is"]) == 1:
            yield {**record, "name": row["is"][0], "names": [row["is"][0]]}


def without_held_out_drawings(
    records: Iterable[dict[str, Any]], root: Path
) -> Iterator[dict[str, Any]]:
    """The records of emoji without the drawings that held-out scenes are made of."""
    things = Things(root)
    for record in records:
        if not things.is_held_out(record["concept"], record["source"]):
            yield record
