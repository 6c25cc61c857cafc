"""`isthmus list`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def list_(
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what can be named: shipped models, connectors, fusions, templates, prompts, assets."""
    from isthmus.align.templates import template_sets
    from isthmus.assets import ASSETS
    from isthmus.config import SHIPPED
    from isthmus.registry import CONNECTORS, FUSIONS, Registry
    from isthmus.templates import TEMPLATES

    def parts(registry: Registry) -> dict[str, str]:
        built_in = {n: _first_line(c) for n, c in registry.built_in().items()}
        return {**built_in, **{n: f"from {v}" for n, v in registry.offered().items()}}

    rows: dict[str, dict[str, str]] = {
        "models": SHIPPED,
        "connectors": parts(CONNECTORS),
        "fusions": parts(FUSIONS),
        "templates": {
            **{n: _first_line(t) for n, t in TEMPLATES.items()},
            "chat": "The language model's own chat template.",
        },
        "prompts": {n: told["about"] for n, told in template_sets().items()},
        "assets": {n: a.description for n, a in ASSETS.items()},
    }
    if json_:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for kind, members in rows.items():
        table.add_row(f"[bold]{kind}[/bold]")
        for name, text in members.items():
            table.add_row(f"  {name}", text)
    Console().print(table)


def _first_line(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]
