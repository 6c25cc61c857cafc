"""`isthmus classify PICTURE... --labels a,b,c`."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer


def classify(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...", help="Pictures or folders of them, or - for stdin."),
    ],
    labels: Annotated[str, typer.Option(help="The labels, with commas between.")] = "",
    labels_file: Annotated[
        Path | None, typer.Option(help="A file of labels, one a line, in place of --labels.")
    ] = None,
    templates: Annotated[
        str,
        typer.Option(
            help='How labels become prompts: a published set ("isthmus list"), a template with {}, '
            "a .txt file of templates, or a .json file of label to descriptions."
        ),
    ] = "imagenet-7",
    top: Annotated[int, typer.Option(min=1, help="How many labels are shown.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help='Below it a picture is "none of these"; with --multi-label, 0.5.'
        ),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option(help="A picture may have several labels, or none.")
    ] = False,
    model: Annotated[
        str, typer.Option(help='"tiny-clip", open_clip:ARCH/PRETRAINED, hf:REPO, or a folder.')
    ] = "tiny-clip",
    sheet: Annotated[
        Path | None, typer.Option(help="Write the pictures and their labels as one PNG.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a line of JSON a picture.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 32,
) -> None:
    """Sort pictures into any classes that can be named, without training.

    isthmus classify photos/ --labels "cat,dog,great white shark"
    """
    from isthmus.align.templates import checked_labels, prompts_of
    from isthmus.errors import InputError

    if labels and labels_file is not None:
        raise InputError("got both --labels and --labels-file: leave one of them out")
    names = checked_labels(_labels(labels, labels_file))
    prompts_of(names, templates)  # a mistake in them is said before anything is loaded
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet is {sheet}: expected a file that ends in .png")
    sources = _sources(pictures)

    from isthmus.align.zeroshot import NONE, ZeroShotClassifier
    from isthmus.images import open_picture

    if sources == ["-"]:
        opened: list[Any] = [open_picture(sys.stdin.buffer)]
    else:
        opened = list(sources)
        for source in opened[:1]:  # a wrong path is said before the model is loaded
            open_picture(source)
    classifier = ZeroShotClassifier(
        model,
        names,
        templates,
        multi_label=multi_label,
        threshold=threshold,
        batch_size=batch_size,
    )
    with _waiting("reading the labels"):
        _ = classifier.weights_
    with _waiting("looking at the pictures"):
        features = classifier.transform(opened)
    best = classifier.top(features, top)
    chosen: list[list[str]]
    if multi_label:
        chosen = [
            [str(name) for name, holds in zip(classifier.classes_, row, strict=True) if holds]
            for row in classifier.predict(features)
        ]
        chosen = [row or [NONE] for row in chosen]
    else:
        chosen = [[str(found)] for found in classifier.predict(features)]
    if sheet is not None:
        from isthmus.pages.sheet import contact_sheet

        lines = [
            [", ".join(given), *(f"{_percent(score)} {name}" for name, score in ranked[:3])]
            for given, ranked in zip(chosen, best, strict=True)
        ]
        picture = contact_sheet(opened, lines)
        sheet.parent.mkdir(parents=True, exist_ok=True)
        picture.save(sheet)
    if json_:
        for source, given, ranked in zip(sources, chosen, best, strict=True):
            found = {
                "picture": str(source),
                "labels" if multi_label else "label": given if multi_label else given[0],
                "top": [{"label": name, "probability": round(p, 6)} for name, p in ranked],
            }
            print(json.dumps(found, ensure_ascii=False))
        return
    _print_table([str(source) for source in sources], chosen, best)


def _waiting(what: str) -> AbstractContextManager[object]:
    """A sign of life for a person at a terminal, and nothing for a pipe."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(f"{what} ...") if console.is_terminal else nullcontext()


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _labels(given: str, file: Path | None) -> list[str]:
    from isthmus.errors import InputError

    if file is None:
        found = [label.strip() for label in given.split(",")]
        return [label for label in found if label]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels in {file}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _sources(given: list[str]) -> list[str]:
    """Paths of pictures, those in folders in the order of their names."""
    from isthmus.errors import InputError
    from isthmus.images import ENDINGS

    found: list[str] = []
    for source in given:
        if source == "-" and len(given) > 1:
            raise InputError("- for stdin is one picture and goes alone")
        if Path(source).is_dir():
            inside = sorted(str(p) for p in Path(source).rglob("*") if p.suffix.lower() in ENDINGS)
            if not inside:
                raise InputError(f"no pictures in {source}: expected {', '.join(ENDINGS)}")
            found += inside
        else:
            found.append(source)
    return found


def _print_table(
    sources: list[str], chosen: list[list[str]], best: list[list[tuple[str, float]]]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("picture", overflow="fold")
    table.add_column("label", style="bold")
    table.add_column("likeliest")
    for source, given, ranked in zip(sources, chosen, best, strict=True):
        shown = "\n".join(f"{score:6.1%}  {escape(name)}" for name, score in ranked)
        table.add_row(escape(source), escape("\n".join(given)), shown)
    Console().print(table)
