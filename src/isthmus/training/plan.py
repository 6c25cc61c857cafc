"""What a run would cost, before anyone pays for it (`isthmus train --dry-run`)."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from isthmus.config.model import LanguageConfig, TrainConfig
from isthmus.data.episodes import Episodes
from isthmus.data.features import FeatureCache
from isthmus.data.mixture import Mixture
from isthmus.data.packing import packed_rows, padded
from isthmus.data.records import Medium, Record, frames, media_of
from isthmus.errors import ConfigError, InputError
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import JoinedImageTower
from isthmus.model.features import Encoding, PieceEncoding
from isthmus.model.media.base import Features, Opened, features_of, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.reports.progress import clock
from isthmus.training import clip, placed, vlm
from isthmus.training.feed import DataSet, Feed, TrainingItem, WeightedSet, as_sets
from isthmus.training.loader import MediaLoader, augmented
from isthmus.training.locked import PooledViews, TextCache
from isthmus.training.memory import Load, memory
from isthmus.training.pairs import PairFeed, PairSet, all_images
from isthmus.training.precision import decided
from isthmus.training.processes import Processes
from isthmus.training.step import Stepper
from isthmus.training.trainee import S, Trainee

GB = 1e9
TIMED = 3
TRIED = 8
"""Images that are encoded to tell how long all of them take."""
DRAWN = 200
"""Steps whose draws tell how often each data set is gone through."""
COUNTED = 64
"""Records of a data set that tell how many attachments all of them have."""


@dataclass(frozen=True)
class Plan:
    """A run before it is started.

    Attributes:
        parameters, trained: Of the model, and those of them that change.
        steps, batch_size: Of the run.
        epochs: How often each data set is gone through, by name.
        step_seconds: Measured, with cached features where the run has them.
        images: Images to encode before the first step.
        encode_seconds: For all of them, and for texts that are kept, measured on a few.
        cache: Bytes of the feature cache.
        details: More figures, of one kind of model: parts, visual tokens, memory and tokens of a
            sample; or pairs, names and texts.
        lines: What people read besides.
        timed: How the time of a step is known.
    """

    parameters: int
    trained: int
    steps: int
    batch_size: int
    epochs: dict[str, float]
    step_seconds: float
    images: int
    encode_seconds: float
    cache: int
    details: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    timed: str = "measured on this machine"

    @property
    def seconds(self) -> float:
        """Of the whole run, filling the cache included."""
        return (self.encode_seconds if self.cache else 0.0) + self.steps * self.step_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        del values["lines"], values["timed"]
        return {**values, **values.pop("details"), "seconds": self.seconds}

    def __str__(self) -> str:
        epochs = ", ".join(f"{name} {n:.1f}" for name, n in self.epochs.items())
        lines = [
            f"{'parameters':<16}{self.parameters:,}, of which {self.trained:,} are trained",
            f"{'steps':<16}{self.steps:,} of {self.batch_size:,} samples",
            f"{'epochs':<16}{epochs}",
            *self.lines,
            f"{'step':<16}{self.step_seconds:.3f} s, {self.timed}",
        ]
        if self.cache:
            texts = f", {self.details['texts']:,} texts" if self.details.get("texts") else ""
            lines.append(
                f"{'feature cache':<16}{self.cache / GB:.2f} GB on disk, "
                f"{clock(self.encode_seconds)} to fill ({self.images:,} images{texts})"
            )
        return "\n".join([*lines, f"{'whole run':<16}{clock(self.seconds)}"])


def plan(
    model: VisionLanguageModel | DualEncoder,
    data: Sequence[DataSet] | Sequence[PairSet],
    config: TrainConfig,
    place: LanguageConfig | None = None,
) -> Plan:
    """What a run would cost; takes a few of its steps to find out, and saves nothing.

    Args:
        model: The model; it is trained a few steps, so do not use it afterwards.
        data: The data sets.
        config: The run's configuration.
        place: Where the language model's layers are put, of a run that does so. No step is taken
            then, and the language model may have no weights (`placed.without_weights`).

    Raises:
        ConfigError: If no sample of the first step can be used.
    """
    if place is None:
        config = decided(config, model.device)
    elif config.precision == "auto":
        config = replace(config, precision="bf16")
    for name, parameter in model.named_parameters():
        if config.freeze and name.startswith(config.freeze):
            parameter.requires_grad_(False)
    processes = Processes(model.device)
    if isinstance(model, DualEncoder):
        return _plan_pairs(model, as_sets(data, PairSet, clip.one_set), config, processes)
    sets = as_sets(data, DataSet, vlm.one_set)
    return _plan_samples(model, sets, config, processes, place)


def _still(config: TrainConfig) -> TrainConfig:
    """A configuration whose steps change nothing."""
    own = replace(config.contrastive, lr_encoder=0.0)
    return replace(config, lr=0.0, lr_connector=None, lr_lora=None, contrastive=own)


def _step_seconds(trainee: Trainee[S], drawn: Sequence[S]) -> float:
    """How long a step takes; the first one also warms up."""
    stepper = Stepper(trainee)
    trainee.model.train()
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        stepper.take(0, drawn)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _epochs(data: Sequence[WeightedSet], config: TrainConfig, mixture: Mixture) -> dict[str, float]:
    """How often each data set is gone through; one step alone may draw nothing of some."""
    looked = min(config.steps, DRAWN)
    drawn = Counter(draw.data for step in range(looked) for draw in mixture.step(step))
    share = config.steps / looked
    return {d.name: share * drawn[i] / len(d.records) for i, d in enumerate(data)}


def _parameters(model: torch.nn.Module) -> Mapping[str, Any]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _plan_samples(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    processes: Processes,
    place: LanguageConfig | None,
) -> Plan:
    """Of a vision-language model."""
    vlm.check_options(config)
    vlm.check_episodes(model, data)
    summary = model.summary()
    source = MediaLoader(model)
    feed = Feed(model, data, config, source)
    started = time.perf_counter()
    items = [i for i in next(feed.steps(0, 1)) if not i.why_not]
    if not items:
        raise ConfigError("no sample of the first step can be used: see `isthmus data check`")
    shown = sum(len(i.attachments) for i in items)
    cached = config.feature_cache and not config.augment
    kept = vlm.cached_media(model) if cached else {}
    tried = items if place is None else items[:TRIED]
    started = started if place is None else time.perf_counter()
    encoded = [_encoded(model, i, kept) for i in tried] if cached else tried
    image_seconds = (time.perf_counter() - started) / max(1, _frames(tried))
    lengths = [len(i.sample.ids) for i in items]
    micro = config.micro_batch_size or len(items)
    rows, length = min(micro, len(lengths)), max(lengths)
    if config.pack:
        packed = packed_rows(lengths[:micro], config.pack)
        rows, length = len(packed), padded(lengths[:micro], packed)
    counts = _counts(model, data)
    images = sum(counts[name] for name in kept) if cached else sum(counts.values())
    load = Load(
        rows=rows,
        tokens=length,
        images=round(shown / len(items) * min(micro, len(items))),
        labelled=sum(sum(i.sample.learned) for i in items[:micro]),
        cached=cached,
    )
    tokens, filled = sum(lengths) / len(lengths), sum(lengths[:micro]) / (rows * length)
    details: dict[str, Any] = {"summary": asdict(summary), "tokens": tokens, "filled": filled}
    timed = "measured on this machine"
    if place is None:
        trainee = vlm.VisionLanguageTrainee(model, data, _still(config), processes, source)
        seconds = _step_seconds(trainee, encoded)
        details["memory"] = needed = memory(model, config, load)
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in needed.items())
        lines = [f"{'memory, GB':<16}{sum(needed.values()) / GB:.2f} ({parts})"]
    else:
        passes = -(-len(items) // rows)
        learned = sum(sum(i.sample.learned) for i in items)
        own = placed.cost(model, config, load, place, {length: passes * rows}, learned)
        seconds, timed, lines = own.step_seconds, own.timed, own.lines(config.steps)
        details |= own.details(config.steps)
    return Plan(
        **_parameters(model),
        steps=config.steps,
        batch_size=feed.mixture.batch_size,
        epochs=_epochs(data, config, feed.mixture),
        step_seconds=seconds,
        images=images,
        encode_seconds=images * image_seconds,
        cache=sum(
            round(counts[name] * _pieces(encoded, name)) * _bytes(encoding)
            for name, encoding in kept.items()
        ),
        details=details,
        lines=(
            f"{'a sample':<16}{tokens:.0f} tokens; rows are {filled:.0%} filled",
            *lines,
            *("", str(summary), ""),
        ),
        timed=timed,
    )


def _frames(items: Sequence[TrainingItem]) -> int:
    """How many images and other attachments samples show, a clip's frames one by one."""
    shown = (m for item in items for m in item.record.images[: len(item.attachments)])
    return sum(len(frames(medium)) for medium in shown)


def _counts(model: VisionLanguageModel, data: Sequence[DataSet]) -> Counter[str]:
    """How many attachments data sets show, a clip's frames one by one, by the medium's name.

    Of many records a few tell.
    """
    found: Counter[str] = Counter()
    for one in data:
        records = one.records
        whole = isinstance(records, Episodes)  # whose images are known without making any
        places = range(0, len(records), 1 if whole else -(-len(records) // COUNTED))
        own: Counter[str] = Counter()
        for source in media_of(records) if whole else _shown(records, places):
            with suppress(InputError):  # of no known medium
                own[medium_of(model, source).name] += len(frames(source))
        share = len(records) / len(places)
        found += Counter({name: round(count * share) for name, count in own.items()})
    return found


def _shown(records: Sequence[Record], places: Iterable[int]) -> Iterator[Medium]:
    """What some records show, those that cannot be read left out."""
    for place in places:
        with suppress(InputError):
            yield from records[place].images


def _pieces(items: Sequence[TrainingItem], name: str) -> float:
    """How many rows a cache has for an attachment of a medium, by those of a step."""
    known = [a for i in items for a in i.attachments if isinstance(a, Features)]
    rows = [len(a.values) for a in known if a.medium == name and a.told is not None]
    return sum(rows) / len(rows) if rows else 1.0


def _bytes(encoding: Encoding | PieceEncoding) -> int:
    """What a cache takes for one row."""
    return int(np.prod(encoding.shape)) * np.dtype(encoding.dtype).itemsize


def _encoded(
    model: VisionLanguageModel, item: TrainingItem, names: Collection[str]
) -> TrainingItem:
    """An item with features where a run would find them in its cache, of the media named."""
    found = list(item.attachments)
    kept = [n for n, own in enumerate(found) if medium_of(model, own).name in names]
    for medium, numbers, features in features_of(model, [found[n] for n in kept]):
        told = features.told if isinstance(features, Opened) else None
        values = features.values if isinstance(features, Opened) else features
        for number, own in zip(numbers, values.cpu(), strict=True):
            found[kept[number]] = Features(medium.name, own, told)
    return replace(item, attachments=tuple(found))


def _plan_pairs(
    model: DualEncoder, data: list[PairSet], config: TrainConfig, processes: Processes
) -> Plan:
    """Of a dual encoder."""
    clip.check_options(config)
    locked = clip.locked_parts(model) if config.feature_cache else ()
    own = config.contrastive
    images = texts = None
    shown, written, seconds, size = 0, 0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        if "image.encoder." in locked and own.views:
            assert isinstance(model.image, JoinedImageTower)
            views = PooledViews(model.image, own.views, augmented, config.seed)
            images, width = FeatureCache(folder, views), views.shape[1]
            shown = sum(1 for _ in all_images(data))
            started = time.perf_counter()
            tried = images.fill(islice(all_images(data), TRIED), quiet=True).computed
            seconds += (time.perf_counter() - started) / max(1, tried) * shown
            size += shown * own.views * width * 4
            # Any vectors will do to see how long a step takes
            some = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, width))).float()
            data = [replace(d, vectors=some.expand(len(d.records), 1, width)) for d in data]
        if "text.encoder." in locked:
            texts = TextCache(folder, model)
        feed = PairFeed(data, config, model.preprocess, images=images, texts=texts)
        step = next(feed.steps(0, 1))
        if texts is not None:
            written = len(feed.all_texts())
            started, few = time.perf_counter(), list(dict.fromkeys(p.text for p in step))
            texts.fill(few, processes, quiet=True)
            seconds += (time.perf_counter() - started) / len(few) * written
            size += written * texts.store.shape[1] * 4
        trainee = clip.DualEncoderTrainee(model, feed, _still(config), processes)
        step_seconds = _step_seconds(trainee, step)
    pairs = {d.name: len(d.records) for d in data}
    names = {d.name: len(d.labelled()) for d in data}
    sets = ", ".join(f"{n} {pairs[n]:,} pairs of {names[n]:,} names" for n in pairs)
    return Plan(
        **_parameters(model),
        steps=config.steps,
        batch_size=config.batch_size,
        epochs=_epochs(data, config, feed.mixture),
        step_seconds=step_seconds,
        images=shown,
        encode_seconds=seconds,
        cache=size,
        details={"pairs": pairs, "names": names, "texts": written},
        lines=(f"{'data':<16}{sets}",),
    )
