"""Filling a feature cache with Ray Data: encoders on many machines, one writer.

Worker processes, on the machines of a Ray cluster or on this one, open images and encode them;
their features come back as half-precision arrays, and this process alone appends them. Files are
opened by the workers, so that the data must lie where all machines see it under the same path.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus.data.features import FeatureCache, FillReport
from isthmus.errors import MediaError, MissingExtraError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.features import PatchFeatures, in_half

PART = 16_384
"""Images of one Ray job; the driver holds their names, or their bytes, and no more."""


class Encode:
    """A worker: images' places to their features, a batch at a time.

    Args:
        encoder: Ray's reference to the frozen encoder, on the CPU, which is sent to a machine
            once; it goes to the worker's GPU if there is one.
    """

    def __init__(self, encoder: Any) -> None:
        import ray

        own: VisionEncoder = ray.get(encoder)
        self.encoder = own.cuda() if torch.cuda.is_available() else own

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Adds `features`, (P, N, D) half precision, zeros where `why` tells what is wrong."""
        images = [
            _image(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)
        ]
        why = [""] * len(images)
        pixels = []
        for i, image in enumerate(images):
            try:
                pixels.append(self.encoder.preprocess(decode(image, image.read())))
            except MediaError as error:
                why[i] = str(error)
        sound = [i for i, reason in enumerate(why) if not reason]
        shape = (self.encoder.shape.tokens, self.encoder.shape.width)
        features = np.zeros((len(images), *shape), np.float16)
        if sound:
            device = next(self.encoder.parameters()).device
            names = [images[i] for i in sound]
            features[sound] = in_half(self.encoder(torch.stack(pixels).to(device)), names)
        return {"name": batch["name"], "key": batch["key"], "why": why, "features": features}


def fill_with_ray(
    cache: FeatureCache,
    images: Iterable[FileRef],
    *,
    encoders: int = 2,
    batch_size: int = 16,
    quiet: bool = False,
) -> FillReport:
    """As `FeatureCache.fill`, with the encoding done by a Ray Data job.

    It runs on the cluster that `ray.init` joined, or starts Ray on this machine.

    Args:
        cache: The cache, of `PatchFeatures`; the encoder must be on the CPU, and is sent to the
            workers.
        images: The images, in any order.
        encoders: Worker processes, each with an encoder of its own; on a cluster with GPUs each
            takes one.
        batch_size: Images in one pass.
        quiet: No progress bars.

    Returns:
        How many were computed and how many were there; broken ones are listed.

    Raises:
        MissingExtraError: If Ray is not installed.
        ImageError: If a feature does not fit half precision.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("filling a feature cache with Ray", "ray") from None
    computed, present = 0, 0
    broken: list[tuple[str, str]] = []
    ray.init(ignore_reinit_error=True, log_to_driver=not quiet, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = not quiet
    assert isinstance(cache.encoding, PatchFeatures)
    encoder = ray.put(cache.encoding.encoder)
    gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
    part: dict[str, FileRef] = {}

    def work() -> int:
        done = 0
        # Blocks are what Ray hands out, and made here: to split them later takes a processor
        # beside those of the encoders, and a machine may have no more
        blocks = max(encoders, min(256, len(part) // batch_size))
        rows = ray.data.from_items(
            [_row(key, p) for key, p in part.items()], override_num_blocks=min(blocks, len(part))
        )
        encoded = rows.map_batches(
            Encode,
            fn_constructor_args=(encoder,),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=encoders),
            num_gpus=gpus,
        )
        for batch in encoded.iter_batches(batch_size=batch_size, batch_format="numpy"):
            sound = [i for i, why in enumerate(batch["why"]) if not why]
            cache.store.append([str(batch["key"][i]) for i in sound], batch["features"][sound])
            lost = [i for i, why in enumerate(batch["why"]) if why]
            broken.extend((str(batch["name"][i]), str(batch["why"][i])) for i in lost)
            done += len(sound)
        return done

    for image, key, why in _looked_up(cache, images):
        if why:
            broken.append((str(image), why))
        elif key is None or key in cache.store or key in part:
            present += 1
        else:
            part[key] = image
            if len(part) == PART:
                computed += work()
                part.clear()
    if part:
        computed += work()
    return FillReport(computed, present, tuple(broken))


def _looked_up(
    cache: FeatureCache, images: Iterable[FileRef]
) -> Iterator[tuple[FileRef, str | None, str]]:
    for image in images:
        try:
            yield image, cache.find(image), ""
        except MediaError as error:
            yield image, None, str(error)


def _row(key: str, image: FileRef) -> dict[str, Any]:
    """An image as a row of a table."""
    return {
        "key": key,
        "name": str(image),
        "path": str(image.path.absolute()),
        "start": image.start,
        "size": -1 if image.size is None else image.size,
        "member": image.member,
        # As text: a table of bytes that ends in NumPy loses the zeros at their end
        "data": "-" if image.data is None else base64.b64encode(image.data).decode(),
    }


def _image(row: dict[str, Any]) -> FileRef:
    size = int(row["size"])
    return FileRef(
        Path(str(row["path"])),
        start=int(row["start"]),
        size=None if size < 0 else size,
        member=str(row["member"]),
        data=None if row["data"] == "-" else base64.b64decode(str(row["data"])),
    )
