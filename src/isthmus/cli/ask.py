"""`isthmus ask PICTURE... QUESTION`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import Device, Dtype, Json, Model, Threads


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE... QUESTION",
            help="Pictures (paths, or - for stdin), then the question.",
        ),
    ],
    model: Model = "tiny",
    json_: Json = False,
    stream: Annotated[bool, typer.Option(help="Print the answer while it is decoded.")] = False,
    allow_url: Annotated[bool, typer.Option(help="Let pictures be http(s) addresses.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    shots: Annotated[
        Path | None, typer.Option(help="A file of demonstrations, as `isthmus rationales` writes.")
    ] = None,
    reason: Annotated[
        str, typer.Option(help="How to reach the answer: none, cot, zero-cot, least-to-most.")
    ] = "none",
    trigger: Annotated[
        str,
        typer.Option(
            help='What makes it reason: a published name, or a text such as "First," '
            "(default: step by step, in the question's language)."
        ),
    ] = "",
    samples: Annotated[int, typer.Option(min=1, help="Chains whose answers vote.")] = 1,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a chain.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    kind: Annotated[
        str, typer.Option(help="What the answer is: text, number, yes_no, choice, label.")
    ] = "text",
    choices: Annotated[
        str, typer.Option(help="The answers of a choice or label, with commas between.")
    ] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Ask a question about one or several pictures; prints the answer and nothing else."""
    from isthmus.answers.closed import closed_answers
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.cli.output import print_json
    from isthmus.errors import InputError

    check_machine(device, dtype)
    if len(arguments) < 2:
        raise InputError(
            f'got only "{arguments[0]}": expected at least one picture and then the question, '
            'as in: isthmus ask cat.jpg "What is in the picture?"'
        )
    if stream and json_:
        raise InputError("--stream cannot go with --json: leave one of them out")
    *sources, question = arguments
    check_text(question, "the question")
    for text, what in ((trigger, "--trigger"), (choices, "--choices")):
        check_text(text, what)
    reasoning = _reasoning(reason, trigger, question, samples, seed, max_step_tokens)
    if reasoning and stream:
        raise InputError("--reason and --samples cannot go with --stream: leave one of them out")
    how: dict[str, Any] = {"kind": kind, "choices": closed_answers(kind, choices.split(","))}
    pictures = [_open(source, allow_url) for source in sources]  # before the model: fail early

    from isthmus import checkpoint, inference

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if shots is not None:
        from isthmus.prompting.example_file import read_examples

        options["shots"] = read_examples(shots)
    if reasoning:
        from isthmus.prompting.reason import check_shots

        check_shots(reasoning, options.get("shots", ()))
    use_machine(device, dtype, threads)
    loaded = checkpoint.load_vlm(model, device=device, dtype=dtype)
    if stream:
        for piece in inference.stream(loaded, pictures, question, **options):
            print(piece, end="", flush=True)
        print()
        return
    answer = inference.ask(loaded, pictures, question, reason=reasoning, **how, **options)
    if json_:
        print_json({**vars(answer), "model": model})
    else:
        print(answer.text)


def _reasoning(
    way: str, trigger: str, question: str, samples: int, seed: int, max_step_tokens: int
) -> Any:
    """How the answer is reached; False for at once, in the ordinary way."""
    if way == "none" and samples == 1 and not trigger:
        return False
    from isthmus.prompting.reason import Reasoning, trigger_for
    from isthmus.triggers import trigger_named

    if trigger and way == "none":
        way = "zero-cot"
    name = trigger or trigger_for(question)
    trigger_named(name)  # an unknown one is said before the model is loaded
    return Reasoning(
        way,  # type: ignore[arg-type]
        name,
        samples=samples,
        seed=seed,
        max_step_tokens=max_step_tokens,
    )


def _open(source: str, allow_url: bool) -> Any:
    """A picture from a path, from stdin, or, if allowed, from an address."""
    from isthmus.errors import InputError
    from isthmus.images import open_picture
    from isthmus.media.fetch import Fetcher, is_url

    if is_url(source):
        if not allow_url:
            raise InputError(
                f"{source} is an address: pass --allow-url to fetch it, or a file on this machine"
            )
        return open_picture(Fetcher(None, plain=True).fetch(source))
    return open_picture(sys.stdin.buffer if source == "-" else source)
