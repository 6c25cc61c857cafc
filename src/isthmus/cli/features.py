"""`isthmus features DATA...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isthmus.cli.options import Device, Dtype, Json, Quiet, Threads

if TYPE_CHECKING:
    from isthmus.config.model import RunConfig, VisionConfig


def features(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help="Data sets: folders of images, JSONL, CSV or Parquet files, or tar shards "
            "(default: those of --config).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The cache's folder (default: 'features' beside the data of --config)."),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(help="The vision encoder, as in timm:NAME (default: that of --config)."),
    ] = None,
    resize: Annotated[
        Literal["own", "pad", "squash"] | None,
        typer.Option(help="The encoder's own crop, padding, or squashing (default: own)."),
    ] = None,
    feature_layer: Annotated[
        int | None,
        typer.Option(help="The block whose output is used (default: -1, the last)."),
    ] = None,
    regions: Annotated[
        bool,
        typer.Option("--regions", help="Append features of regions, for connectors such as names."),
    ] = False,
    fine: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stride of an early feature map to append, for reading printed words."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A run's TOML file: its encoder and its data sets.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that data sets' paths are relative to (default: the config's)."),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Encode as a Ray Data job.")] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Threads that open images; with --ray, encoders.")
    ] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    json_: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Compute the frozen features of data sets' images once, for every run that needs them.

    An image that cannot be read is named on stderr, and the exit code is 1; the others are kept.
    """
    from isthmus.cli.options import check_machine, use_machine
    from isthmus.cli.output import print_json, printable

    check_machine(device, dtype)
    chosen, sources = _wanted(data or [], vision, config)
    place = root or (config.parent if config else None)
    if out is None and config is None:
        from isthmus.errors import ConfigError

        raise ConfigError("no folder for the cache: pass --out FOLDER")

    use_machine(device, dtype, threads)
    from isthmus.data.compute import compute_features

    done = compute_features(
        sources,
        out or (place or Path()) / "features",
        _with_media(chosen, device),
        resize=resize,
        feature_layer=feature_layer,
        regions=regions or None,
        fine=fine,
        root=place,
        workers=workers,
        batch_size=batch_size,
        quiet=quiet or json_,
        ray=ray,
        device=device,
        dtype=dtype,
    )
    report = done.report
    for _, why in report.broken:
        print(f"skipped: {printable(' '.join(why.split()))}", file=sys.stderr)
    if json_:
        print_json({**vars(report), "cache": str(done.path)})
    else:
        print(
            f"{report.computed} computed, {report.present} present, {len(report.broken)} broken: "
            f"{done.path}"
        )
    if report.broken:
        raise typer.Exit(1)


def _wanted(
    data: list[str], vision: str | None, config: Path | None
) -> tuple[VisionConfig | RunConfig, list[str]]:
    """The encoder and the data sets, from the arguments or else from a run's file.

    Of a run whose images may come in tiles it is the run, since the model says how they are cut.
    """
    from dataclasses import replace

    from isthmus.config.file import read_run
    from isthmus.config.model import ModelConfig, VisionConfig
    from isthmus.errors import ConfigError

    run = read_run(config) if config else None
    if run is None and vision is None:
        raise ConfigError("no vision encoder: pass --vision NAME, or --config RUN.toml")
    sources = data or [d.path for d in (run.data if run else ())]
    if not sources:
        raise ConfigError(
            "no data sets: name at least one, or pass --config RUN.toml with [[data]]"
        )
    if run is None:
        return VisionConfig(name=vision or ""), sources
    if not isinstance(run.model, ModelConfig):
        raise ConfigError(
            f"{config} trains a dual encoder, which keeps vectors of its own: pass --vision NAME "
            "and the data sets in place of --config"
        )
    if run.model.media and vision is None:
        return run, sources
    chosen = run.model.vision
    return (replace(chosen, name=vision) if vision else chosen), sources


def _with_media(chosen: VisionConfig | RunConfig, device: str) -> Any:
    """The encoder; or the model of a run, if its images come in tiles."""
    from dataclasses import replace

    from isthmus.config.model import ModelConfig, RunConfig
    from isthmus.model.media.base import InPieces
    from isthmus.training.run import build

    if not isinstance(chosen, RunConfig):
        return chosen
    assert isinstance(chosen.model, ModelConfig)  # `_wanted` refuses others
    # where a run starts from changes nothing of its frozen encoder
    model: Any = build(replace(chosen, train=replace(chosen.train, init=None)), device)
    tiles = any(isinstance(medium, InPieces) for medium in model.media)
    return model if tiles else chosen.model.vision
