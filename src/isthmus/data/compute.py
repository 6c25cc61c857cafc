"""Features of data sets' images, computed once for all runs that need them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from isthmus.data.features import FeatureCache, FillReport
from isthmus.data.piece_cache import PieceCache
from isthmus.data.records import LazyRecords, Record, entries_of, frames
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, InputError
from isthmus.machine import device_for, dtype_for
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.vision import load_vision
from isthmus.model.features import PatchFeatures
from isthmus.model.media.base import InPieces
from isthmus.model.vlm import VisionLanguageModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Computed:
    """What `compute_features` did.

    Attributes:
        report: How many were computed, were there, and could not be read.
        path: Where they are.
    """

    report: FillReport
    path: Path


def compute_features(
    data: Any,
    out: str | Path,
    vision: Any,
    *,
    resize: Literal["own", "pad", "squash"] | None = None,
    feature_layer: int | None = None,
    regions: bool | None = None,
    fine: int | None = None,
    root: str | Path | None = None,
    workers: int = 2,
    batch_size: int = 16,
    quiet: bool = True,
    ray: bool = False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> Computed:
    """Computes the frozen features of data sets' images, so that no run has to.

    Args:
        data: One data set or a list of them, in any form that `read_data` takes.
        out: The cache's folder.
        vision: The vision encoder: a name, a `VisionConfig`, or an object; or a model whose images
            come in tiles, which are then kept tile by tile.
        resize: "own" (the encoder's crop), "pad" or "squash"; None keeps the configuration's.
        feature_layer: Which block's output; None keeps the configuration's.
        regions: Whether what is seen of regions follows; None keeps the configuration's.
        fine: Stride of the early map behind them; None keeps the configuration's.
        root: What data sets' paths are relative to.
        workers: Threads that open images; with `ray`, encoders.
        batch_size: Images in one pass.
        quiet: No progress bar.
        ray: Encode as a Ray Data job, which chooses its devices itself.
        device: Where the encoder runs.
        dtype: The encoder's data type; "auto" is float32, as training computes what is missing.

    Raises:
        InputError: If no data set is given.
        ConfigError: If a data set or the encoder is unknown, or a model is given with options for
            an encoder, or one without tiles.
        ImageError: If a feature is too large for half precision, or not finite.

    Example:
        >>> import tempfile
        >>> record = Record.of("no-such-file.png", "", "a cat")
        >>> done = compute_features([record], tempfile.mkdtemp(), "tiny-vit")
        >>> done.report.computed, len(done.report.broken)
        (0, 1)
    """
    place = device_for(device)
    kind = dtype_for(None if dtype == "auto" else dtype, place)
    found = [read_data(source, root=root) for source in _listed(data)]  # before the encoder
    if not found:
        raise InputError("got no data sets: expected at least one")
    if isinstance(vision, VisionLanguageModel):
        options = {"resize": resize, "feature_layer": feature_layer, "regions": regions}
        given = [n for n, v in {**options, "fine": fine, "ray": ray or None}.items() if v]
        return _of_model(vision, found, out, given, workers, quiet)
    encoder = load_vision(
        vision, resize=resize, feature_layer=feature_layer, regions=regions, fine=fine
    )
    if ray:
        from isthmus.data.ray_features import fill_with_ray

        cache = FeatureCache(out, PatchFeatures(encoder.to(kind)))
        report = fill_with_ray(
            cache, _images(found), encoders=workers or 1, batch_size=batch_size, quiet=quiet
        )
    else:
        cache = FeatureCache(out, PatchFeatures(encoder.to(place, kind)))
        report = cache.fill(_images(found), quiet=quiet, batch_size=batch_size, workers=workers)
    return Computed(report, Path(cache.path))


def _of_model(
    model: VisionLanguageModel,
    data: Iterable[Sequence[Record]],
    out: str | Path,
    given: Sequence[str],
    workers: int,
    quiet: bool,
) -> Computed:
    """The features of a model's images in tiles.

    Raises:
        ConfigError: If options are given that it has no use for, or its images are in none.
    """
    if given:
        raise ConfigError(
            f"got {given[0]}: a model's images in tiles are opened by its own image processor, on "
            "this machine; leave it out"
        )
    own = next((medium for medium in model.media if isinstance(medium, InPieces)), None)
    if own is None:
        kinds = ", ".join(medium.name for medium in model.media)
        raise ConfigError(
            f"the model takes {kinds}, none of which come in pieces: pass its vision encoder"
        )
    cache = PieceCache(out, own.pieces(model))
    return Computed(cache.fill(_images(data), quiet=quiet, workers=workers), cache.path)


def _listed(data: Any) -> list[Any]:
    """Data sets as a list; records are one data set."""
    if isinstance(data, (str, Path, LazyRecords)) or hasattr(data, "column_names"):
        return [data]
    listed = list(data)
    return [listed] if listed and isinstance(listed[0], Record) else listed


def _images(data: Iterable[Sequence[Record]]) -> Iterator[FileRef]:
    """All images of data sets, a clip's frames one by one; bad records are named in the log.

    What is of another kind has an encoder of its own.
    """
    for records in data:
        for entry in entries_of(records):
            if isinstance(entry, str):
                log.warning("left out: %s", entry)
                continue
            for medium in entry.images:
                yield from (file for file in frames(medium) if file.kind == "image")
