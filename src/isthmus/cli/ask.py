"""`isthmus ask PICTURE... QUESTION`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE... QUESTION",
            help="Pictures (paths, or - for stdin), then the question.",
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A shipped model's name, or a folder from `isthmus train`.")
    ] = "tiny",
    json_: Annotated[
        bool, typer.Option("--json", help="Print answer, prompt and token counts as JSON.")
    ] = False,
    stream: Annotated[bool, typer.Option(help="Print the answer while it is decoded.")] = False,
    allow_url: Annotated[bool, typer.Option(help="Let pictures be http(s) addresses.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
) -> None:
    """Ask a question about one or several pictures; prints the answer and nothing else."""
    from isthmus.errors import InputError

    if len(arguments) < 2:
        raise InputError(
            f'got only "{arguments[0]}": expected at least one picture and then the question, '
            'as in: isthmus ask cat.jpg "What is in the picture?"'
        )
    if stream and (json_ or beams > 1):
        raise InputError(
            f"--stream cannot go with {'--json' if json_ else '--beams'}: leave one of them out"
        )
    *sources, question = arguments
    pictures = [_open(source, allow_url) for source in sources]  # before the model: fail early

    from isthmus import checkpoint, inference

    loaded = checkpoint.load(model)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if beams > 1:
        options["num_beams"] = beams
    if stream:
        for piece in inference.stream(loaded, pictures, question, **options):
            print(piece, end="", flush=True)
        print()
        return
    answer = inference.ask(loaded, pictures, question, **options)
    print(json.dumps({**vars(answer), "model": model}) if json_ else answer.text)


def _open(source: str, allow_url: bool) -> Any:
    """A picture from a path, from stdin, or, if allowed, from an address."""
    from isthmus.errors import InputError
    from isthmus.images import fetch_url, is_url, open_picture

    if is_url(source):
        if not allow_url:
            raise InputError(
                f"{source} is an address: pass --allow-url to fetch it, or a file on this machine"
            )
        return open_picture(fetch_url(source))
    return open_picture(sys.stdin.buffer if source == "-" else source)
