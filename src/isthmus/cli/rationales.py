"""`isthmus rationales`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Model, Quiet, Threads


def rationales(
    data: Annotated[
        Path,
        typer.Option(help="Questions, in any form that training reads; JSONL needs no answers."),
    ],
    out: Annotated[Path, typer.Option(help="The file of demonstrations to write (.toml).")],
    model: Model = "tiny",
    k: Annotated[int, typer.Option("--k", min=1, help="Number of demonstrations.")] = 8,
    kind: Annotated[
        str, typer.Option(help="What the answers are: text, number, yes_no, choice, label.")
    ] = "text",
    choices: Annotated[
        str,
        typer.Option(
            help="The answers of a choice or label, separated by commas; a choice may have "
            '"choices" of its own in the data instead.'
        ),
    ] = "",
    trigger: Annotated[
        str,
        typer.Option(
            help="Text that makes the model reason: a published name, or a text (default: "
            "step by step, in the question's language)."
        ),
    ] = "",
    ignore_answers: Annotated[
        bool, typer.Option(help="Cluster and filter (Auto-CoT) even where answers are known.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(min=1, help="Chains per labelled question; all but one are sampled.")
    ] = 4,
    hint: Annotated[
        bool, typer.Option(help="Ask once more with the answer as a hint, and say so in the file.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the clustering and the sampling.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of questions.")] = 1000,
    max_rationale_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a chain.")
    ] = 256,
    json_: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Have the model write demonstrations with steps, and keep those that pass the checks.

    Where the questions have answers, a chain is kept if it reaches them (STaR's filter); where
    they have none, questions are clustered and simple tests decide (Auto-CoT).
    """
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.cli.output import print_json
    from isthmus.reasoning.wording import trigger_named

    check_machine(device, dtype)
    check_text(trigger, "--trigger")
    check_text(choices, "--choices")
    if trigger:
        trigger_named(trigger)  # an unknown one is said before anything heavy is loaded
    use_machine(device, dtype, threads)

    from rich.console import Console
    from rich.progress import Progress

    from isthmus.demonstrations.rationale_file import write_rationales

    console = Console(stderr=True)
    hush = quiet or json_ or not console.is_terminal
    with Progress(console=console, transient=True, disable=hush) as bar:
        task = bar.add_task("Demonstrations", total=None)
        found = write_rationales(
            data,
            out,
            model=model,
            k=k,
            kind=kind,
            choices=choices.split(","),
            trigger=trigger,
            ignore_answers=ignore_answers,
            attempts=attempts,
            hint=hint,
            seed=seed,
            limit=limit,
            max_rationale_tokens=max_rationale_tokens,
            device=device,
            dtype=dtype,
            progress=lambda what, done, of: bar.update(
                task, description=what, completed=done, total=of
            ),
        )
    if json_:
        texts = ("question", "rationale", "answer")
        entries = [{t: getattr(w.example, t) for t in texts} | {"made": w.made} for w in found]
        print_json({"out": str(out), "examples": entries})
        return
    print(f"{len(found)} of {k} demonstrations in {out}")
