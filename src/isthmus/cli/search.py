"""`isthmus search FOLDER "QUERY"`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Device, Dtype, DualEncoder, Json, Quiet, Threads

if TYPE_CHECKING:
    from isthmus.search.index import Hit, ImageIndex, IndexReport


def search(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    query: Annotated[
        str, typer.Argument(metavar="[QUERY]", help='What to look for: "a red car".')
    ] = "",
    like: Annotated[
        Path | None, typer.Option(help="Search for images like this one, in place of words.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Number of images to show.")] = 10,
    index: Annotated[
        Path | None, typer.Option(help="Folder of the index (default: in Isthmus's cache).")
    ] = None,
    update: Annotated[bool, typer.Option(help="Index new and changed images first.")] = True,
    model: DualEncoder = "tiny-clip",
    sheet: Annotated[
        Path | None, typer.Option(help="Write the images that were found as one PNG.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Find images in a folder by what they show, given words or another image.

    isthmus search photos/ "a dog on a beach"

    The first time every image is looked at; from then on only new and changed ones.
    With --json a line for each image.
    """
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.cli.output import print_json
    from isthmus.errors import ImageError, InputError
    from isthmus.media.image import open_image

    check_machine(device, dtype)
    check_text(query, "the query")

    if bool(query.strip()) == (like is not None):
        raise InputError('say what to look for: either words, such as "a red car", or --like FILE')
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: expected a folder of images")
    if sheet is not None and (sheet.suffix.lower() != ".png" or top > 400):
        raise InputError(
            f"--sheet is {sheet} with --top {top}: expected a file that ends in .png, and at most "
            "400 images on it"
        )
    if like is not None:
        open_image(like)  # said before the model is loaded
    from isthmus.search.file_table import DATABASE
    from isthmus.search.search import default_place, search_images

    place = index or default_place(folder, model)
    if not update and not (place / DATABASE).is_file():
        raise InputError(f"there is no index in {place} yet: leave --no-update out")
    use_machine(device, dtype, threads)
    found = search_images(
        folder,
        query,
        like=like,
        k=top,
        index=place,
        update=update,
        model=model,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        filling=lambda opened: _updated(opened, folder, quiet),
    )
    hits = list(found.hits)
    if found.report is not None:
        _tell(found.report)
    if sheet is not None and hits:
        from isthmus.reports.sheet import contact_sheet

        shown = [hit for hit in hits if hit.path.is_file()]
        try:
            made = contact_sheet(
                [hit.path for hit in shown], [[hit.path.name, f"{hit.score:.3f}"] for hit in shown]
            )
        except ImageError as error:
            raise InputError(f"{error} (it changed since it was indexed)") from error
        sheet.parent.mkdir(parents=True, exist_ok=True)
        made.save(sheet)
    if json_:
        for hit in hits:
            copies = [str(path) for path in hit.copies]
            told = {"image": str(hit.path), "score": round(hit.score, 6), "copies": copies}
            print_json(told)
    else:
        _print_table(hits, folder)


def _updated(index: ImageIndex, folder: Path, quiet: bool) -> IndexReport:
    """Fills the index, and shows how far it has come."""
    from isthmus.reports.progress import Progress
    from isthmus.search.index import paths_in

    if quiet:
        return index.add(folder)
    total = None
    if sys.stderr.isatty():  # a second walk through the folder, for a person who waits
        total = sum(1 for _ in paths_in(folder.absolute(), index.folder))
    with Progress("Looking at images", total, unit="images") as progress:
        try:
            return index.add(folder, progress=progress.advance)
        except KeyboardInterrupt:
            kept = f"{progress.done} images are kept"
    print(f"{kept}: run the same command again to resume", file=sys.stderr)
    raise KeyboardInterrupt


def _tell(report: IndexReport) -> None:
    """What was new, on stderr."""
    for path, why in report.broken[:5]:
        print(f"skipped {path}: {' '.join(why.split())}", file=sys.stderr)
    if len(report.broken) > 5:
        print(f"skipped {len(report.broken) - 5} more", file=sys.stderr)
    if report.added or report.forgotten:
        print(
            f"{report.added} images new, {report.known} known, {report.forgotten} gone",
            file=sys.stderr,
        )


def _print_table(hits: list[Hit], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from isthmus.cli.output import printable

    if not hits:
        print(f"no images in {folder}", file=sys.stderr)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("image", overflow="fold")
    base = folder.absolute()
    for hit in hits:
        path = hit.path.relative_to(base) if hit.path.is_relative_to(base) else hit.path
        more = f"  (and {len(hit.copies)} more of it)" if hit.copies else ""
        name = printable(str(path))
        table.add_row(f"{hit.score:.3f}", escape(name) + more)
    Console().print(table)
