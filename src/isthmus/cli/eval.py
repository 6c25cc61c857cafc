"""`isthmus eval MODEL --tasks TASK,...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Quiet, Threads


def eval_(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, or a folder from `isthmus train`.")
    ] = "tiny",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, with commas between: counting,gsm8k:FOLDER,exam.jsonl,package.module:make."
        ),
    ] = None,
    shots: Annotated[str, typer.Option(help="Numbers of demonstrations.")] = "0,4,8",
    reasoning: Annotated[
        str, typer.Option(help="none, cot, zero-cot, auto-cot, least-to-most; also several.")
    ] = "none",
    samples: Annotated[
        int, typer.Option(min=1, help="Answers drawn for each question; most votes win.")
    ] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    select: Annotated[str, typer.Option(help="How demonstrations are chosen.")] = "random",
    order: Annotated[str, typer.Option(help="In which order they stand.")] = "similar-last",
    calibrate: Annotated[str, typer.Option(help="How closed answers are calibrated.")] = "none",
    controls: Annotated[
        str, typer.Option(help="blank, blank-shots, shuffled, filler, answer-first.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most questions of each task (default: all).")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template (default: the task's or the model's).")
    ] = None,
    trigger: Annotated[
        str, typer.Option(help="What zero-cot begins with: a published trigger's name, or a text.")
    ] = "step-by-step",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records, results and report; a stopped run goes on there."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List tasks and choices, and leave.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Measure a model: arms with intervals, baselines, controls and paired tests."""
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.cli.output import print_json
    from isthmus.errors import ConfigError

    check_machine(device, dtype)
    check_text(trigger, "--trigger")
    if list_:
        _list(json_)
        return
    if tasks is None:
        raise ConfigError("expected --tasks TASK,... (isthmus eval --list names them)")
    counts = [_number(part, "--shots") for part in _parts(shots)]
    if not counts:
        raise ConfigError(f'--shots is "{shots}": expected numbers with commas between, as in 0,4')
    use_machine(device, dtype, threads)
    from isthmus.evaluation.runner import evaluate

    results = evaluate(
        model,
        _parts(tasks),
        shots=counts,
        reasoning=_parts(reasoning),
        samples=samples,
        seeds=range(seeds),
        select=select,
        order=order,
        calibrate=calibrate,
        controls=_parts(controls),
        limit=limit,
        template=template,
        trigger=trigger,
        out=out,
        quiet=quiet or json_,
        device=device,
        dtype=dtype,
    )
    if json_:
        print_json(results.to_json())
        return
    print(results.markdown())
    if out is not None:
        print(f"report: {out / 'report.html'}")


def _parts(text: str) -> list[str]:
    """What stands between commas, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _number(text: str, option: str) -> int:
    from isthmus.errors import ConfigError

    if not text.isdecimal():
        raise ConfigError(f'{option}: "{text}" is no number; expected such as 0,4,8')
    return int(text)


def _list(json_: bool) -> None:
    """Prints what can be asked for."""
    from isthmus.cli.output import print_json
    from isthmus.config.registry import TASK_MAKERS
    from isthmus.evaluation.arms import CONTROLS, WAYS
    from isthmus.evaluation.tasks import TASKS

    rows = {
        "tasks": {
            **{f"{n}:PATH" if k.generate is None else n: k.about for n, k in TASKS.items()},
            **{name: f"from {place}" for name, place in TASK_MAKERS.offered().items()},
        },
        "controls": CONTROLS,
    }
    if json_:
        print_json({**rows, "reasoning": WAYS})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for kind, members in rows.items():
        table.add_row(f"[bold]{kind}[/bold]")
        for name, about in members.items():
            table.add_row(f"  {name}", about)
    table.add_row("[bold]reasoning[/bold]")
    table.add_row("", ", ".join(WAYS))
    Console().print(table)
