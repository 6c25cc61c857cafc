"""`isthmus list`."""

from __future__ import annotations

from isthmus.cli.options import Json


def list_(json_: Json = False) -> None:
    """List what can be named: shipped models, connectors, fusions, templates, prompts, assets."""
    from isthmus.catalogue import available
    from isthmus.cli.output import print_json

    rows = available()
    if json_:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for kind, members in rows.items():
        table.add_row(f"[bold]{kind}[/bold]")
        for name, text in members.items():
            table.add_row(f"  {name}", text)
    Console().print(table)
