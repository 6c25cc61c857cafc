"""`isthmus features DATA...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isthmus.config import VisionConfig
    from isthmus.data.records import Picture, Record


def features(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help="Data sets: folders of pictures, JSONL, CSV or Parquet files, or tar shards "
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
        typer.Option(help="The encoder's own crop, padded, or squeezed (default: own)."),
    ] = None,
    feature_layer: Annotated[
        int | None,
        typer.Option(help="Which block's output (default: -1, the last)."),
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
        int, typer.Option(min=0, help="Threads that open pictures; with --ray, encoders.")
    ] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Compute the frozen features of data sets' pictures, once, for all runs that need them."""
    encoder_config, sources = _wanted(data or [], vision, config)
    place = root or (config.parent if config else None)
    if out is None and config is None:
        from isthmus.errors import ConfigError

        raise ConfigError("no folder for the cache: pass --out FOLDER")
    folder = out or (place or Path()) / "features"

    from isthmus.data.sources import read_data

    found = [read_data(source, root=place) for source in sources]  # before the model: fail early

    import torch

    from isthmus.backbones.vision import load_vision
    from isthmus.data.features import FeatureCache, PatchFeatures

    if threads is not None:
        torch.set_num_threads(threads)
    encoder = load_vision(encoder_config, resize=resize, feature_layer=feature_layer)
    hush = quiet or json_
    if ray:
        from isthmus.data.ray_features import fill_with_ray

        cache = FeatureCache(folder, PatchFeatures(encoder))
        report = fill_with_ray(
            cache, _pictures(found), encoders=workers or 1, batch_size=batch_size, quiet=hush
        )
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cache = FeatureCache(folder, PatchFeatures(encoder.to(device)))
        report = cache.fill(_pictures(found), quiet=hush, batch_size=batch_size, workers=workers)
    if json_:
        print(json.dumps({**vars(report), "cache": str(cache.path)}))
        return
    for _, why in report.broken:
        print(f"skipped: {' '.join(why.split())}", file=sys.stderr)
    print(
        f"{report.computed} computed, {report.present} present, {len(report.broken)} broken: "
        f"{cache.path}"
    )


def _wanted(
    data: list[str], vision: str | None, config: Path | None
) -> tuple[VisionConfig, list[str]]:
    """The encoder and the data sets, from the arguments or else from a run's file."""
    from dataclasses import replace

    from isthmus.config import ModelConfig, VisionConfig
    from isthmus.config_file import read_run
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
    chosen = run.model.vision
    return (replace(chosen, name=vision) if vision else chosen), sources


def _pictures(data: Iterable[Sequence[Record]]) -> Iterator[Picture]:
    """All pictures of data sets, a clip's frames one by one."""
    from isthmus.data.records import frames

    for records in data:
        for record in records:
            for medium in record.pictures:
                yield from frames(medium)
