"""`isthmus eval MODEL --tasks TASK,...`, or with --config all evaluations of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Engine, Json, Quiet, Threads


def eval_(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, or hf:REPO.")
    ] = "tiny",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, separated by commas: counting,gsm8k:FOLDER,exam.jsonl,package.module:make."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file of evaluations, for a card with pictures (with --out)."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder that the paths of tasks are relative to (default: here)."),
    ] = None,
    shots: Annotated[
        str, typer.Option(help="Numbers of demonstrations, separated by commas.")
    ] = "0,4,8",
    reasoning: Annotated[
        str,
        typer.Option(
            help="Ways to reason: none, cot, zero-cot, auto-cot, least-to-most; one or several."
        ),
    ] = "none",
    samples: Annotated[
        int, typer.Option(min=1, help="Answers sampled per question; the majority wins.")
    ] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    task_seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of generated tasks; another seed makes other questions."),
    ] = 0,
    select: Annotated[str, typer.Option(help="How demonstrations are chosen.")] = "random",
    order: Annotated[str, typer.Option(help="Order of the demonstrations.")] = "similar-last",
    calibrate: Annotated[str, typer.Option(help="How closed answers are calibrated.")] = "none",
    controls: Annotated[
        str, typer.Option(help="Controls: blank, blank-shots, shuffled, filler, answer-first.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions per task (default: all).")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template (default: the task's or the model's).")
    ] = None,
    trigger: Annotated[
        str, typer.Option(help="Trigger of zero-cot: a published name, or a text.")
    ] = "step-by-step",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records, results and report; a stopped run resumes there."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List tasks and choices, and exit.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "torch",
    threads: Threads = None,
) -> None:
    """Evaluate a model, with intervals, baselines, controls and paired tests."""
    from isthmus.cli.options import check_machine, check_text, use_machine
    from isthmus.cli.output import print_json
    from isthmus.errors import ConfigError

    check_machine(device, dtype, engine)
    check_text(trigger, "--trigger")
    if list_:
        _list(json_)
        return
    if config is not None:
        _refuse_beside_config(context)
        if out is None:
            raise ConfigError("--config expects --out FOLDER for the card and the records")
        _suite(model, config, data, out, limit, (device, dtype, threads, engine), quiet, json_)
        return
    if tasks is None:
        raise ConfigError(
            "expected --tasks TASK,... (isthmus eval --list names them), or --config FILE"
        )
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
        data=data,
        task_seed=task_seed,
        out=out,
        quiet=quiet or json_,
        device=device,
        dtype=dtype,
        engine=engine,
    )
    if json_:
        print_json(results.to_json())
        return
    print(results.markdown())
    if out is not None:
        print(f"report: {out / 'report.html'}")


BESIDE_CONFIG = (
    *("model", "config", "data", "limit", "out"),
    *("json_", "quiet", "device", "dtype", "engine", "threads"),
)
"""What may be asked for with a file of evaluations; everything else stands in the file."""


def _refuse_beside_config(context: typer.Context) -> None:
    """Refuses what would otherwise be left out of account.

    Raises:
        ConfigError: If an option was given that the file has.
    """
    from isthmus.errors import ConfigError

    for name in context.params:
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and name not in BESIDE_CONFIG:
            raise ConfigError(f"--config with --{name}: expected {name} in the file alone")


def _suite(
    model: str,
    config: Path,
    data: Path | None,
    out: Path,
    limit: int | None,
    machine: tuple[str, str, int | None, str],
    quiet: bool,
    json_: bool,
) -> None:
    """Runs all evaluations of a file."""
    from isthmus.cli.options import use_machine
    from isthmus.cli.output import print_json
    from isthmus.config.evaluation import read_suite
    from isthmus.config.model import SHIPPED

    suite = read_suite(config)
    device, dtype, threads, engine = machine
    use_machine(device, dtype, threads)
    from isthmus.evaluation.suite import CARD, evaluate_suite

    named = model if model in SHIPPED else "MODEL"
    where = "" if data is None else " --data DATA"
    limited = "" if limit is None else f" --limit {limit}"
    results = evaluate_suite(
        model,
        suite,
        data=data,
        out=out,
        limit=limit,
        command=f"isthmus eval {named} --config {named_in_card(config)}{where}{limited} --out OUT",
        quiet=quiet or json_,
        device=device,
        dtype=dtype,
        engine=engine,
    )
    if json_:
        print_json({name: own.to_json() for name, own in results.items()})
        return
    print((out / CARD).read_text(encoding="utf-8"))
    print(f"card: {out / CARD}")


def named_in_card(config: Path) -> str:
    """A file as the card names it, which says nothing of the machine it was made on."""
    place, here = Path(os.path.abspath(config)), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name


def _parts(text: str) -> list[str]:
    """What stands between commas, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _number(text: str, option: str) -> int:
    from isthmus.errors import ConfigError

    if not text.isdecimal():
        raise ConfigError(f'{option}: "{text}" is not a number; expected a list such as 0,4,8')
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
