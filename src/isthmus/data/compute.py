"""Features of data sets' images, computed once for all runs that need them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from isthmus.data.features import FeatureCache, FillReport
from isthmus.data.records import LazyRecords, Record, entries_of, frames
from isthmus.data.sources import read_data
from isthmus.errors import InputError
from isthmus.machine import device_for, dtype_for
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.vision import load_vision
from isthmus.model.features import PatchFeatures

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
        vision: The vision encoder: a name, a `VisionConfig`, or an object.
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
        ConfigError: If a data set or the encoder is unknown.
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
