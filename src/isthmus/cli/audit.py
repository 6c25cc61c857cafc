"""`isthmus audit MODEL --data FOLDER --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Quiet, Threads

if TYPE_CHECKING:
    from isthmus.auditing.run import Audit


def audit(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, or a CLIP of another library.")
    ] = "tiny-clip",
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images: a folder of class folders, or a JSONL or CSV file."),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Use drawn shapes in place of --data.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the report; a stopped audit resumes there.")
    ] = Path("audit"),
    labels: Annotated[
        str, typer.Option(help="The labels, separated by commas (default: the data's).")
    ] = "",
    label: Annotated[
        str | None, typer.Option(help="The column with the class, if it has another name.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only rows of this split.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that image paths in a file are relative to.")
    ] = None,
    templates: Annotated[
        str, typer.Option(help="As for classify: a set's name, a template, or a file.")
    ] = "imagenet-7",
    question: Annotated[
        str, typer.Option(help="What a vision-language model is asked.")
    ] = "What is in the picture?",
    calibration: Annotated[
        Path | None, typer.Option(help="The calibration that the model is deployed with.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model to compare with.")] = None,
    groups: Annotated[
        str, typer.Option(help="Columns whose groups are compared, separated by commas.")
    ] = "",
    textures: Annotated[
        str,
        typer.Option(help="Column with the label whose texture an image has (cue conflict)."),
    ] = "",
    outside: Annotated[
        Path | None, typer.Option(help='A folder of images of other things, for "none of these".')
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="A file of the training captions, one per line.")
    ] = None,
    associations: Annotated[
        Path | None, typer.Option(help="A TOML file of association tests (docs/audit.md).")
    ] = None,
    sections: Annotated[
        str, typer.Option(help="Sections to run, separated by commas.")
    ] = "bias,prompts,attacks,confidence",
    quick: Annotated[
        bool, typer.Option(help="Fewer images and samples: about two minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Measure the limits of a classifier (bias, prompts, attacks, confidence); write a report.

    isthmus audit tiny-clip --data photos/ --out audit
    """
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.errors import InputError

    check_machine(device, dtype)
    for text, option in (
        (labels, "--labels"),
        (templates, "--templates"),
        (question, "--question"),
    ):
        check_text(text, option)
    if (data is None) != demo:
        raise InputError(
            "got no --data: name labelled images, or try --demo"
            if data is None
            else "got both --data and --demo: leave one of them out"
        )
    use_machine(device, dtype, threads)
    from isthmus.auditing.run import audit as run

    found = run(
        model,
        data,
        labels=_listed(labels) or None,
        templates=templates,
        question=question,
        calibration=calibration,
        against=against,
        groups=_listed(groups),
        textures=textures.strip(),
        sections=_listed(sections),
        outside=outside or (),
        captions=captions or (),
        associations=associations or (),
        label_column=label,
        split=split,
        root=root,
        quick=quick,
        seed=seed,
        out=out,
        quiet=quiet,
        device=device,
        dtype=dtype,
    )
    if json_:
        from isthmus.cli.output import print_json

        print_json(dict(found.results))
    else:
        _tell(found, out)


def _listed(told: str) -> list[str]:
    return [part.strip() for part in told.split(",") if part.strip()]


def _tell(found: Audit, out: Path) -> None:
    from isthmus.cli.output import printable

    verdict = found.verdict
    if verdict["accuracy"] is not None:
        print(f"right: {verdict['accuracy']:.1%} (chance {verdict['chance']:.1%})")
    for gauge in verdict["gauges"]:
        print(printable(f"{gauge['limit']}: {gauge['word']}. {gauge['sentence']}"))
    print(printable(f"first: {verdict['first']}"))
    missing = found.results["missing"]
    if missing:
        print(f"not measured: {', '.join(missing)} (the report says why)")
    print(printable(f"report: {out / 'report.html'}"))
