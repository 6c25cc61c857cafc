"""`isthmus info MODEL`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a folder.")] = "tiny",
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show a model's parts, parameters frozen and trained, tokens and FLOPs per picture."""
    from isthmus import checkpoint

    summary = checkpoint.load_vlm(model).summary()
    print(json.dumps(summary.as_dict()) if json_ else summary)
