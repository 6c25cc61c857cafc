"""`isthmus train CONFIG`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A TOML configuration file.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its state and its log.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that the data sets' paths are relative to [the config's]."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads [all].")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train the strip between two frozen parts; a stopped run goes on where it was."""
    from isthmus.config_file import read_run

    run_config = read_run(config, set_ or ())
    import torch

    from isthmus.training import loop

    if threads is not None:
        torch.set_num_threads(threads)
    folder = loop.run(run_config, data or config.parent, out, quiet=quiet or json_)
    steps = run_config.train.steps
    print(json.dumps({"model": str(folder), "steps": steps}) if json_ else f"saved {folder}")
