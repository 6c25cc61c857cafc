"""`isthmus search FOLDER "QUERY"`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isthmus.align.search import Hit, IndexReport, PictureIndex


def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.")],
    query: Annotated[
        str, typer.Argument(metavar="[QUERY]", help='What to look for: "a red car".')
    ] = "",
    like: Annotated[
        Path | None, typer.Option(help="A picture to look for the like of, in place of words.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="How many pictures.")] = 10,
    index: Annotated[
        Path | None, typer.Option(help="Folder of the index (default: in Isthmus's cache).")
    ] = None,
    update: Annotated[bool, typer.Option(help="Look for new and changed pictures first.")] = True,
    model: Annotated[
        str, typer.Option(help='"tiny", open_clip:ARCH/PRETRAINED, hf:REPO, or a folder.')
    ] = "tiny",
    sheet: Annotated[
        Path | None, typer.Option(help="Write the pictures that were found as one PNG.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a line of JSON a picture.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 32,
) -> None:
    """Find pictures of a folder by what is in them, with words or with a picture.

    isthmus search photos/ "a dog on a beach"

    The first time every picture is looked at; from then on only new and changed ones.
    """
    from isthmus.errors import InputError, PictureError
    from isthmus.images import open_picture

    if bool(query.strip()) == (like is not None):
        raise InputError('say what to look for: either words, such as "a red car", or --like FILE')
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: expected a folder of pictures")
    if sheet is not None and (sheet.suffix.lower() != ".png" or top > 400):
        raise InputError(
            f"--sheet is {sheet} with --top {top}: expected a file that ends in .png, and at most "
            "400 pictures on it"
        )
    if like is not None:
        open_picture(like)  # said before the model is loaded
    from isthmus.align.file_table import DATABASE
    from isthmus.align.saved import load_dual_encoder
    from isthmus.align.search import PictureIndex
    from isthmus.align.segments import usearch_index

    usearch_index()
    place = index or _default_place(folder, model)
    if not update and not (place / DATABASE).is_file():
        raise InputError(f"there is no index in {place} yet: leave --no-update out")
    with PictureIndex(place, load_dual_encoder(model), batch_size=batch_size) as opened:
        if update:
            _tell(_updated(opened, folder))
        if like is not None:
            hits = opened.search_like(like, top, within=folder)
        else:
            hits = opened.search(query, top, within=folder)
    if sheet is not None and hits:
        from isthmus.pages.sheet import contact_sheet

        shown = [hit for hit in hits if hit.path.is_file()]
        try:
            made = contact_sheet(
                [hit.path for hit in shown], [[hit.path.name, f"{hit.score:.3f}"] for hit in shown]
            )
        except PictureError as error:
            raise InputError(f"{error} (it changed since it was indexed)") from error
        sheet.parent.mkdir(parents=True, exist_ok=True)
        made.save(sheet)
    if json_:
        for hit in hits:
            copies = [str(path) for path in hit.copies]
            told = {"picture": str(hit.path), "score": round(hit.score, 6), "copies": copies}
            print(json.dumps(told, ensure_ascii=False))
    else:
        _print_table(hits, folder)


def _default_place(folder: Path, model: str) -> Path:
    """Where a folder's index under a model is kept."""
    import hashlib

    from isthmus.assets import home

    told = f"{folder.absolute().resolve()}\n{model}".encode(errors="surrogateescape")
    return home() / "indexes" / hashlib.sha256(told).hexdigest()[:16]


def _updated(index: PictureIndex, folder: Path) -> IndexReport:
    """Fills the index, and shows how far it has come."""
    from isthmus.align.search import pictures_in
    from isthmus.progress import Progress

    total = None
    if sys.stderr.isatty():  # a second walk through the folder, for a person who waits
        total = sum(1 for _ in pictures_in(folder.absolute(), index.folder))
    with Progress("Looking at images", total, unit="images") as progress:
        try:
            return index.add(folder, progress=progress.advance)
        except KeyboardInterrupt:
            kept = f"{progress.done} images are kept"
    print(f"{kept}: say the same again to go on", file=sys.stderr)
    raise KeyboardInterrupt


def _tell(report: IndexReport) -> None:
    """What was new, on stderr."""
    for path, why in report.broken[:5]:
        print(f"skipped {path}: {' '.join(why.split())}", file=sys.stderr)
    if len(report.broken) > 5:
        print(f"skipped {len(report.broken) - 5} more", file=sys.stderr)
    if report.added or report.forgotten:
        print(
            f"{report.added} pictures new, {report.known} known, {report.forgotten} gone",
            file=sys.stderr,
        )


def _print_table(hits: list[Hit], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not hits:
        print(f"no pictures in {folder}", file=sys.stderr)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("picture", overflow="fold")
    base = folder.absolute()
    for hit in hits:
        path = hit.path.relative_to(base) if hit.path.is_relative_to(base) else hit.path
        more = f"  (and {len(hit.copies)} more of it)" if hit.copies else ""
        name = str(path).encode(errors="replace").decode()
        table.add_row(f"{hit.score:.3f}", escape(name) + more)
    Console().print(table)
