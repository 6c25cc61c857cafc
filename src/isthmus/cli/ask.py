"""`isthmus ask IMAGE... QUESTION`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import Device, Dtype, Engine, Json, MaxTiles, Model, Threads


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Images (paths, or - for stdin), then the question.",
        ),
    ],
    model: Model = "tiny",
    json_: Json = False,
    stream: Annotated[bool, typer.Option(help="Print the answer while it is decoded.")] = False,
    allow_url: Annotated[
        bool, typer.Option(help="Allow images given as http(s) addresses.")
    ] = False,
    shots: Annotated[
        Path | None, typer.Option(help="A file of demonstrations, as `isthmus rationales` writes.")
    ] = None,
    reasoning: Annotated[
        str,
        typer.Option(
            help="How to reach the answer: none, cot, zero-cot, least-to-most; auto is cot where "
            "a demonstration has a rationale, else zero-cot."
        ),
    ] = "none",
    trigger: Annotated[
        str,
        typer.Option(
            help='Text that makes the model reason: a published name, or a text such as "First," '
            "(default: step by step, in the question's language)."
        ),
    ] = "",
    samples: Annotated[int, typer.Option(min=1, help="Number of chains whose answers vote.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Sampling temperature (default: 0, greedy; 0.7 with several samples)."
        ),
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens with this total probability.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from this many of the most likely tokens; 0 for all.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of the answer.")] = 32,
    max_rationale_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of the steps.")
    ] = 256,
    kind: Annotated[
        str, typer.Option(help="What the answer is: text, number, yes_no, choice, label.")
    ] = "text",
    choices: Annotated[
        str, typer.Option(help="The possible answers of a choice or label, separated by commas.")
    ] = "",
    max_tiles: MaxTiles = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "torch",
    threads: Threads = None,
) -> None:
    """Ask a question about one or more images, and print only the answer."""
    from isthmus.cli.options import (
        check_machine,
        check_text,
        for_few_images,
        image_options,
        open_source,
        use_machine,
    )
    from isthmus.cli.output import print_json
    from isthmus.errors import InputError
    from isthmus.prompts.answers.closed import closed_answers

    check_machine(device, dtype, engine)
    if len(arguments) < 2:
        raise InputError(
            f'got only "{arguments[0]}": expected at least one image and then the question, '
            'as in: isthmus ask cat.jpg "What is in the image?"'
        )
    if stream and json_:
        raise InputError("--stream cannot go with --json: leave one of them out")
    *sources, question = arguments
    check_text(question, "the question")
    for text, what in ((trigger, "--trigger"), (choices, "--choices")):
        check_text(text, what)
    if trigger and reasoning == "none":
        reasoning = "zero-cot"
    if stream and (reasoning != "none" or samples > 1):
        raise InputError("--reasoning and --samples cannot go with --stream: leave one of them out")
    if stream and (kind != "text" or choices):
        raise InputError("--kind and --choices cannot go with --stream: leave one of them out")
    how: dict[str, Any] = {"kind": kind, "choices": closed_answers(kind, choices.split(","))}
    demonstrations = _demonstrations(shots)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    more: dict[str, Any] = {"samples": samples, "max_rationale_tokens": max_rationale_tokens}
    planned = _planned(reasoning, trigger, demonstrations, {**options, **more})
    images = [open_source(source, allow_url) for source in sources]  # before the model: fail early

    from dataclasses import asdict

    from isthmus.model import whole
    from isthmus.reasoning import inference

    use_machine(device, dtype, threads)
    loaded = whole.load_answering(
        model,
        device=device,
        dtype=dtype,
        image_options=image_options(max_tiles),
        engine=engine,
    )
    for_few_images(loaded)
    if stream:
        pieces = inference.stream(loaded, images, question, shots=demonstrations, **options)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    answer = inference.ask(loaded, images, question, shots=demonstrations, reasoning=planned, **how)
    if json_:
        print_json({**asdict(answer), "prompt": answer.prompt, "model": model})
    else:
        print(answer.text)


def _demonstrations(path: Path | None) -> list[Any]:
    """The demonstrations of a file; none without one."""
    if path is None:
        return []
    from isthmus.demonstrations.example_file import read_examples

    return read_examples(path)


def _planned(way: str, trigger: str, shots: list[Any], options: dict[str, Any]) -> Any:
    """How the answer is reached; what is wrong with it is said before the model is loaded."""
    from isthmus.reasoning.method import reasoning_for
    from isthmus.reasoning.wording import trigger_named

    if trigger:
        trigger_named(trigger)
    return reasoning_for(way, shots, trigger=trigger or None, **options)
