"""`isthmus explain IMAGE... QUESTION`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Model, Threads


def explain(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Images (paths, or - for stdin), then the question.",
        ),
    ],
    model: Model = "tiny",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("explained.html"),
    json_: Json = False,
    allow_url: Annotated[
        bool, typer.Option(help="Allow images given as http(s) addresses.")
    ] = False,
    side: Annotated[
        int,
        typer.Option(help="Cover SIDE x SIDE parts of the image, one at a time; 0 for none."),
    ] = 4,
    words: Annotated[
        int, typer.Option(help="Number of layers whose visual tokens are shown as words.")
    ] = 5,
    heads: Annotated[bool, typer.Option(help="Show each attention head beside the mean.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of the answer.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Write a page that shows what a model looked at for each token of its answer.

    isthmus explain cat.jpg "What is in the picture?" --out page.html
    """
    from isthmus.cli.options import (
        check_machine,
        check_text,
        for_few_images,
        open_source,
        use_machine,
    )
    from isthmus.cli.output import print_json, printable
    from isthmus.errors import InputError, OutputError

    check_machine(device, dtype)
    if len(arguments) < 2:
        raise InputError(
            f'got only "{arguments[0]}": expected at least one image and then the question, '
            'as in: isthmus explain cat.jpg "What is in the image?"'
        )
    *sources, question = arguments
    check_text(question, "the question")
    if out.is_dir():
        raise OutputError(f"{out} is a folder: expected the name of a page, such as {out}/cat.html")
    images = [open_source(source, allow_url) for source in sources]  # before the model: fail early

    from isthmus.explaining.run import check_options
    from isthmus.explaining.run import explain as run
    from isthmus.model import checkpoint

    check_options(side, words, max_new_tokens)
    use_machine(device, dtype, threads)
    loaded = checkpoint.load_vlm(model, device=device, dtype=dtype)
    for_few_images(loaded)
    found = run(
        loaded,
        images,
        question,
        heads=heads,
        side=side,
        words=words,
        max_new_tokens=max_new_tokens,
        out=out,
    )
    if json_:
        print_json({**found.to_dict(), "model": model, "page": str(out)})
        return
    print(printable(f"answer: {found.answer}"))
    if found.blanked is not None:
        print(printable(f"without the images: {found.blanked.answer}"))
    print(printable(f"page: {out}"))
