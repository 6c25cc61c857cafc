"""`isthmus train [CONFIG] --data DATA --out FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A TOML configuration file (without: the shipped default learns more)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model, its checkpoints and its log.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures with captions, or a file of records; with CONFIG the folder that its "
            "data sets' paths are relative to (default: the config's)."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and train nothing.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="CONFIG on tiny parts and made-up data, in seconds.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Train the strip between two frozen parts, or a CLIP; a stopped run goes on where it was.

    A CONFIG with a table [dual_encoder] trains a dual encoder on pictures and their names.

    Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 143 stopped by SIGTERM after saving.
    """
    from isthmus.errors import ConfigError

    if config is None and data is None:
        raise ConfigError("nothing to train on: expected a CONFIG, or --data FOLDER")
    if out is None and not dry_run:
        raise ConfigError("expected --out FOLDER for the model, its checkpoints and its log")
    import torch

    from isthmus.training.run import job, plan_of, work

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = job(config, data, set_ or (), smoke=smoke)
    if dry_run:
        plan = plan_of(chosen)
        print(json.dumps(plan.to_json()) if json_ else plan)
        return
    assert out is not None
    steps = chosen.config.train.steps
    folder = work(chosen, out, quiet=quiet or json_)
    print(json.dumps({"model": str(folder), "steps": steps}) if json_ else f"saved {folder}")
