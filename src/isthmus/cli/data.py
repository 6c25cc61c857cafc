"""`isthmus data check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Json, Quiet

if TYPE_CHECKING:
    from isthmus.data.check import Report, Trouble

FIRST = 10
"""Broken files that are named on the screen."""

data = typer.Typer(help="Look at training data before training on it.", no_args_is_help=True)


@data.callback()
def _verbs() -> None:
    """Look at training data before training on it."""


@data.command()
def check(
    path: Annotated[
        str,
        typer.Argument(
            help='A folder of images, a JSONL, CSV or Parquet file, or tar shards ("s/*.tar", '
            '"s/{000..009}.tar").'
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that PATH and the images in it are relative to, as --data is "
            "for train; by default the file's own."
        ),
    ] = None,
    decode: Annotated[
        bool, typer.Option(help="Decode every image, or only read the headers: faster.")
    ] = True,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count, measure and test the records of a data set.

    Exit code 0: fit for training. 1: some images or records are broken. 2: nothing is usable,
    or PATH cannot be read.

    isthmus data check pairs.jsonl

    isthmus data check "shards/{000..009}.tar" --no-decode --json
    """
    from isthmus.cli.output import print_json
    from isthmus.data.check import check_data

    report = check_data(path, root, decode=decode, quiet=quiet or json_)
    if json_:
        print_json(report.as_dict())
    else:
        _show(report)
    raise typer.Exit(report.exit_code)


def _show(report: Report) -> None:
    """Prints a table, what is broken, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    small = f"{report.small:.1%}" if report.width else "-"
    rows = {
        "records": report.records,
        "  usable": report.usable,
        "  turns": report.turns,
        "  documents": report.documents,
        "  clips": report.clips,
        **{f"files of the kind {name}": count for name, count in report.others.items()},
        "  repeated": report.duplicate_records,
        "  empty answers": report.empty_answers,
        "  unreadable": len(report.broken_records),
        "images": report.images,
        "  features": report.features,
        "  same as another": report.duplicate_images,
        "  broken": len(report.broken_images),
        "  below 224 pixels": small,
        "width, pixels (min / median / max)": report.width or "-",
        "height, pixels": report.height or "-",
        "text, characters": report.characters or "-",
        "text, words": report.words or "-",
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for troubles, what in (
        (report.broken_images, "broken images"),
        (report.broken_records, "unreadable records"),
    ):
        _name(troubles, what)
    print(report.verdict)


def _name(troubles: tuple[Trouble, ...], what: str) -> None:
    """Names the first of what is broken; plainly, for names may hold brackets."""
    from isthmus.cli.output import printable

    for trouble in troubles[:FIRST]:
        print(f"  {' '.join(printable(trouble.why).split())}")
    if len(troubles) > FIRST:
        print(f"  and {len(troubles) - FIRST} more {what}: --json names them all")
