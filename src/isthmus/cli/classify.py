"""`isthmus classify IMAGE... --labels a,b,c`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isthmus.cli.options import Device, Dtype, DualEncoder, Json, Quiet, Threads

if TYPE_CHECKING:
    from isthmus.classification.classify import Classified


def classify(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images or folders of them, or - for stdin."),
    ],
    labels: Annotated[str, typer.Option(help="The labels, separated by commas.")] = "",
    labels_file: Annotated[
        Path | None, typer.Option(help="A file with one label per line, in place of --labels.")
    ] = None,
    templates: Annotated[
        str,
        typer.Option(
            help='How labels become prompts: a published set ("isthmus list"), a template with {}, '
            "a .txt file of templates, or a .json file of label to descriptions."
        ),
    ] = "imagenet-7",
    top: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help='An image below it is "none of these" (default with --multi-label: 0.5).',
        ),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option(help="An image may have several labels, or none.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file from `Calibration.save`, for the same model and templates."),
    ] = None,
    model: DualEncoder = "tiny-clip",
    sheet: Annotated[
        Path | None, typer.Option(help="Write the images and their labels as one PNG.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Classify images with any labels, without training.

    isthmus classify photos/ --labels "cat,dog,great white shark"

    A --model that answers questions (as of `isthmus ask`) is asked what is in the image, and the
    labels are scored as its answers.

    With --json a line for each image. An image that cannot be read costs no other's result: it
    is named on stderr, and the exit code is 1; 2 if there is no other.
    """
    from isthmus.classification.templates import checked_labels, prompts_of
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.data.folders import images_of
    from isthmus.errors import InputError
    from isthmus.media.image import Source, open_image

    check_machine(device, dtype)
    check_text(labels, "--labels")
    check_text(templates, "--templates")
    if labels and labels_file is not None:
        raise InputError("got both --labels and --labels-file: leave one of them out")
    names = checked_labels(_labels(labels, labels_file))
    prompts_of(names, templates)  # a mistake in them is said before anything is loaded
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet is {sheet}: expected a file that ends in .png")
    if "-" in images and len(images) > 1:
        raise InputError("- for stdin is one image and goes alone")
    sources: list[Source] = [open_image(sys.stdin.buffer)] if images == ["-"] else []
    sources = sources or images_of(images)
    if len(sources) == 1:
        open_image(sources[0])  # a wrong path is said before the model is loaded

    use_machine(device, dtype, threads)
    from isthmus.classification.classify import classify_images

    with _waiting("reading the labels", quiet):
        results = classify_images(
            sources,
            names,
            templates,
            top=top,
            threshold=threshold,
            multi_label=multi_label,
            calibration=calibration,
            model=model,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
        first = next(results)
    done: list[Classified] = []
    try:
        for result in _each(first, results, quiet):
            done.append(result)
            if result.error:
                _tell_failed(result)
            if json_:
                _print_line(result, multi_label)
    finally:  # Ctrl-C loses nothing either
        good = [result for result in done if not result.error]
        if good and not json_:
            _print_table(good)
    if sheet is not None and good:
        _write_sheet(good, sheet)
    if len(good) < len(done):
        raise typer.Exit(1 if good else 2)


def _each(first: Classified, others: Iterator[Classified], quiet: bool) -> Iterator[Classified]:
    """All results, with a sign of life for a person at a terminal."""
    yield first
    with _waiting("looking at the images", quiet):
        yield from others


def _waiting(what: str, quiet: bool) -> AbstractContextManager[object]:
    """A sign of life for a person at a terminal, and nothing for a pipe."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(f"{what} ...") if console.is_terminal and not quiet else nullcontext()


def _name(result: Classified) -> str:
    """What an image is called; one from stdin is "-"."""
    return str(result.image) if isinstance(result.image, (str, Path)) else "-"


def _tell_failed(result: Classified) -> None:
    from isthmus.cli.output import print_error

    name, why = _name(result), result.error
    print_error(why if name in why else f"{name}: {why}")


def _print_line(result: Classified, multi_label: bool) -> None:
    from isthmus.cli.output import print_json

    told: dict[str, Any] = {"image": _name(result)}
    if result.error:
        told["error"] = result.error
    else:
        given = list(result.labels) if multi_label else result.labels[0]
        told["labels" if multi_label else "label"] = given
        told["top"] = [{"label": n, "probability": round(p, 6)} for n, p in result.top]
    print_json(told)


def _write_sheet(results: list[Classified], sheet: Path) -> None:
    from isthmus.reports.sheet import contact_sheet

    lines = [
        [", ".join(r.labels), *(f"{_percent(score)} {name}" for name, score in r.top[:3])]
        for r in results
    ]
    made = contact_sheet([r.image for r in results], lines)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    made.save(sheet)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _labels(given: str, file: Path | None) -> list[str]:
    from isthmus.errors import InputError

    if file is None:
        found = [label.strip() for label in given.split(",")]
        return [label for label in found if label]
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels in {file}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _print_table(results: list[Classified]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from isthmus.cli.output import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("label", style="bold")
    table.add_column("likeliest")
    for result in results:
        shown = "\n".join(f"{score:6.1%}  {escape(name)}" for name, score in result.top)
        name = escape(printable(_name(result)))
        table.add_row(name, escape("\n".join(result.labels)), shown)
    Console().print(table)
