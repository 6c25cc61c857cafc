"""What a run would cost, before anyone pays for it (`isthmus train --dry-run`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from isthmus.config import TrainConfig
from isthmus.data.packing import packed_rows
from isthmus.errors import ConfigError
from isthmus.model import VisionLanguageModel
from isthmus.summary import Summary
from isthmus.training.feed import DataSet, Feed, Item, PictureSource
from isthmus.training.memory import Load, memory
from isthmus.training.objectives import Concepts, Language, Objective
from isthmus.training.optim import optimizer_for
from isthmus.training.processes import Processes
from isthmus.training.step import LossScale, Stepper

GB = 1e9
TIMED = 3


@dataclass(frozen=True)
class Plan:
    """A run before it is started.

    Attributes:
        summary: Parameters part by part, visual tokens, FLOPs per picture.
        steps, samples: Of the whole run.
        epochs: How often each data set is gone through, by name.
        tokens: Mean tokens of a sample, pictures in the text included.
        filled: Share of a row that is no padding.
        memory: Estimated bytes of each part, in one process.
        cache: Bytes of the feature cache for the pictures of one epoch.
        step_seconds: Measured, with cached features where the run has them.
        picture_seconds: Measured, to open and encode a picture.
        pictures: Pictures of one epoch of all data sets, estimated from a step's samples.
    """

    summary: Summary
    steps: int
    samples: int
    epochs: dict[str, float]
    tokens: float
    filled: float
    memory: dict[str, int]
    cache: int
    step_seconds: float
    picture_seconds: float
    pictures: int

    @property
    def seconds(self) -> float:
        """Of the whole run, filling the cache included."""
        encode = self.pictures * self.picture_seconds if self.cache else 0.0
        return encode + self.steps * self.step_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "seconds": self.seconds}

    def __str__(self) -> str:
        memory = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.memory.items())
        epochs = ", ".join(f"{name} {n:.1f}" for name, n in self.epochs.items())
        lines = [
            str(self.summary),
            "",
            f"{'steps':<16}{self.steps:,} of {self.samples // self.steps:,} samples",
            f"{'epochs':<16}{epochs}",
            f"{'a sample':<16}{self.tokens:.0f} tokens; rows are {self.filled:.0%} filled",
            f"{'memory, GB':<16}{sum(self.memory.values()) / GB:.2f} ({memory})",
            f"{'step':<16}{self.step_seconds:.2f} s, measured on this machine",
        ]
        if self.cache:
            encode = self.pictures * self.picture_seconds
            lines.append(
                f"{'feature cache':<16}{self.cache / GB:.2f} GB on disk, "
                f"{clock(encode)} to fill ({self.pictures:,} pictures)"
            )
        lines.append(f"{'whole run':<16}{clock(self.seconds)}")
        return "\n".join(lines)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> clock(3723)
        '1:02:03'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def plan(model: VisionLanguageModel, data: Sequence[DataSet], config: TrainConfig) -> Plan:
    """What a run would cost; takes a few of its steps to find out, and saves nothing.

    Args:
        model: The model; it is trained a few steps, so do not use it afterwards.
        data: The data sets.
        config: The run's configuration.

    Raises:
        ConfigError: If no sample of the first step can be used.
    """
    summary = model.summary()
    for name, parameter in model.named_parameters():
        if config.freeze and name.startswith(config.freeze):
            parameter.requires_grad_(False)
    processes = Processes(model.device)
    feed = Feed(model, data, config, PictureSource(model, None), processes=1)
    started = time.perf_counter()
    items = [i for i in next(feed.steps(0, 1)) if not i.why_not]
    if not items:
        raise ConfigError("no sample of the first step can be used: see `isthmus data check`")
    shown = sum(len(i.pictures) for i in items if i.pictures is not None)
    cached = config.feature_cache and not config.augment
    if cached:
        items = [_encoded(model, i) for i in items]
    picture_seconds = (time.perf_counter() - started) / max(1, shown)
    parameters = model.trained_parameters()
    objective: Objective = Language(config.pack) if config.objective == "language" else Concepts()
    optimizer = optimizer_for(parameters, config)
    quiet = replace(config, lr=0.0, lr_connector=None, lr_lora=0.0)
    stepper = Stepper(model, data, quiet, objective, processes, optimizer, parameters, LossScale())
    model.train()
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        stepper.take(0, items)
        times.append(time.perf_counter() - started)
    lengths = [len(i.sample.ids) for i in items]
    micro = config.micro_batch_size or len(items)
    rows, length = min(micro, len(lengths)), max(lengths)
    if config.pack:
        rows, length = len(packed_rows(lengths[:micro], config.pack)), config.pack
    batch = feed.mixture.batch_size
    drawn = dict.fromkeys(range(len(data)), 0)
    for draw in feed.mixture.step(0):
        drawn[draw.data] += 1
    records = sum(len(d.records) for d in data)
    pictures = round(records * shown / len(items))
    row_bytes = model.vision.shape.tokens * model.vision.shape.width * 2
    return Plan(
        summary=summary,
        steps=config.steps,
        samples=config.steps * batch,
        epochs={d.name: config.steps * drawn[m] / len(d.records) for m, d in enumerate(data)},
        tokens=sum(lengths) / len(lengths),
        filled=sum(lengths[:micro]) / (rows * length),
        memory=memory(
            model,
            config,
            Load(
                rows=rows,
                tokens=length,
                pictures=round(shown / len(items) * min(micro, len(items))),
                labelled=sum(sum(i.sample.learned) for i in items[:micro]),
                cached=cached,
            ),
        ),
        cache=pictures * row_bytes if cached else 0,
        step_seconds=min(times[1:]),  # the first one also warms up
        picture_seconds=picture_seconds,
        pictures=pictures,
    )


def _encoded(model: VisionLanguageModel, item: Item) -> Item:
    """An item with features in place of pixels."""
    if item.pictures is None or item.is_features:
        return item
    features = model.encode_pictures(item.pictures.to(model.device)).cpu()
    return replace(item, pictures=features, is_features=True)
