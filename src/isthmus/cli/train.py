"""`isthmus train [CONFIG] --data DATA --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Quiet, Threads, use_machine


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A TOML configuration file (default: fine-tune the shipped model)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model, its checkpoints and its log.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images with captions, or a file of records; with CONFIG, the folder that its "
            "data sets' paths are relative to (default: that of CONFIG)."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of CONFIG."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and train nothing.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Run CONFIG with tiny parts and generated data, in seconds."),
    ] = False,
    episodes: Annotated[
        bool,
        typer.Option(
            "--episodes",
            help="Without CONFIG: train the model to learn from demonstrations, made from DATA.",
        ),
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the strip between two frozen models, or a dual encoder, or resume a stopped run.

    A CONFIG with a table `dual_encoder` trains a dual encoder on images and their names.

    Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 143 stopped by SIGTERM after saving.
    """
    from isthmus.errors import ConfigError

    if config is None and data is None:
        raise ConfigError("nothing to train on: expected a CONFIG, or --data FOLDER")
    if out is None and not dry_run:
        raise ConfigError("expected --out FOLDER for the model, its checkpoints and its log")
    use_machine(device, dtype, threads)
    from isthmus.cli.output import print_json
    from isthmus.machine import PRECISIONS, dtype_for
    from isthmus.training.run import job, plan_of, work

    overrides = list(set_ or ())
    if dtype != "auto":  # the data type of the frozen parts is the run's precision
        dtype_for(dtype, device)  # says what cannot be trained in
        precision = next(name for name, kind in PRECISIONS.items() if kind == dtype)
        overrides.append(f"train.precision={precision}")
    chosen = job(config, data, overrides, smoke=smoke, episodes=episodes, device=device)
    if dry_run:
        plan = plan_of(chosen)
        if json_:
            print_json(plan.to_json())
        else:
            print(plan)
        return
    assert out is not None
    steps = chosen.config.train.steps
    folder = work(chosen, out, quiet=quiet or json_)
    if json_:
        print_json({"model": str(folder), "steps": steps})
    else:
        print(f"saved {folder}")
