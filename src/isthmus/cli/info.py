"""`isthmus info [MODEL]`."""

from __future__ import annotations

from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Json, Threads


def info(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, or hf:REPO.")
    ] = "tiny",
    json_: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Show a model's parts, tokens and FLOPs per image, and what this machine can do.

    The last lines say what "auto" takes here: device, data type, precision of training.
    """
    from isthmus.cli.options import use_machine
    from isthmus.cli.output import print_json
    from isthmus.machine import probe
    from isthmus.model import whole

    use_machine(device, dtype, threads)
    summary = whole.load_answering(model, device=device, dtype=dtype).summary()
    if json_:
        print_json({**summary.as_dict(), "machine": probe().as_dict()})
    else:
        print(f"{summary}\n{probe()}")
