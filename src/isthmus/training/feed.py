"""What each step of a process works on: records drawn, opened ahead, tokenized."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from isthmus.config.model import TrainConfig
from isthmus.data.episodes import Episodes
from isthmus.data.mixture import Mixture, SampleRef
from isthmus.data.records import LazyRecords, Medium, Record
from isthmus.data.samples import Sample, tokenize
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, InputError
from isthmus.media.prefetch import prefetch
from isthmus.model.media.base import Attachment, layouts_of, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.templates import template_named
from isthmus.training.loader import MediaLoader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """Records, and how they take part in a run.

    Attributes:
        records: Any sequence; read when they are drawn.
        weight: Share of the draws.
        loss_weight: What a token counts for in the loss.
        next_image: Probability that a document's images stand before the text in front of
            them.
        questions: Questions for records without one, in turn.
        name: What logs call it.
    """

    records: Sequence[Record]
    weight: float = 1.0
    loss_weight: float = 1.0
    next_image: float = 0.0
    questions: tuple[str, ...] = ()
    name: str = "data"

    def record(self, index: int) -> Record:
        """A record, with a question if it has none."""
        record = self.records[index]
        if not self.questions:
            return record
        return record.asked(self.questions[index % len(self.questions)])


NO_SAMPLE = Sample([], [])


@dataclass(frozen=True)
class TrainingItem:
    """One sample of a step.

    Attributes:
        draw: Which it is.
        record: Its record.
        sample: Its tokens.
        attachments: Those of its sample, opened or as features.
        why_not: What is wrong with it, if it cannot be used.
    """

    draw: SampleRef
    record: Record
    sample: Sample = NO_SAMPLE
    attachments: tuple[Attachment, ...] = ()
    why_not: str = ""

    def __str__(self) -> str:
        images = self.record.images
        if self.record.origin or not images:
            return self.record.origin or repr(self.record.answer[:40])
        first = images[0]
        return str(first[0] if isinstance(first, tuple) else first)


class WeightedSet(Protocol):
    """What `DataSet` and `PairSet` have in common."""

    @property
    def records(self) -> Sequence[Record]:
        """Any sequence; read when they are drawn."""
        ...

    @property
    def weight(self) -> float:
        """Share of the draws."""
        ...

    @property
    def name(self) -> str:
        """What logs call it."""
        ...


W = TypeVar("W", bound=WeightedSet)


def as_sets(data: Any, kind: type[W], make: Callable[[Sequence[Record], str], W]) -> list[W]:
    """What was passed to `train`, as data sets.

    Args:
        data: A path, records, or data sets.
        kind: The class that is wanted.
        make: One of it, from records and a name.

    Raises:
        ConfigError: If there is none, one is empty or of another kind, or the shares are none.
    """
    if isinstance(data, (str, Path)):
        sets = [make(read_data(data), Path(str(data)).stem)]
    elif isinstance(data, LazyRecords) or (len(data) and isinstance(data[0], Record)):
        sets = [make(data, "")]
    else:
        sets = list(data)
    if not sets:
        raise ConfigError("nothing to train on: no data set")
    if others := [type(d).__name__ for d in sets if not isinstance(d, kind)]:
        raise ConfigError(f"got {others[0]} as a data set: expected {kind.__name__} for this model")
    if empty := [d.name for d in sets if not len(d.records)]:
        raise ConfigError(f"nothing to train on in {', '.join(empty)}: all records are held out")
    weights = [d.weight for d in sets]
    if not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
        raise ConfigError(f"data.weight is {weights}: expected none below 0 and one above it")
    return sets


def split(data: DataSet, share: float, seed: int) -> tuple[DataSet, DataSet]:
    """A data set for training and one for evaluation, that share no image.

    Which side a record is on depends on its first image's name (or its text) and the seed alone.

    Args:
        data: The whole.
        share: Share of the second, from 0 to 1.
        seed: The run's seed.
    """
    if share <= 0:
        return data, replace(data, records=[])
    sides: tuple[list[Record], list[Record]] = ([], [])
    for index in range(len(data.records)):
        try:
            record = data.record(index)
        except InputError:  # of a shard: `isthmus data check` names them
            continue
        key = str(record.images[0]) if record.images else record.answer
        digest = hashlib.sha256(f"{seed} {key}".encode(errors="backslashreplace")).digest()
        sides[int.from_bytes(digest[:8]) < share * 2.0**64].append(record)
    return replace(data, records=sides[0]), replace(data, records=sides[1])


class Feed:
    """The samples of a run, for one of its processes.

    Args:
        model: The model, for its tokens.
        data: Data sets, none of them empty.
        config: Batch size, mixture, seed, lengths.
        media: Where attachments come from.
        rank: Number of this process.
        processes: How many there are; each takes every so many-th sample of a step.

    Raises:
        ConfigError: If a step cannot be shared evenly, or the model's template cannot be used.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        data: Sequence[DataSet],
        config: TrainConfig,
        media: MediaLoader,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.model, self.data, self.config, self.media = model, data, config, media
        # said now, and not as what is wrong with every record
        template_named(model.config.template, model.language.tokenizer)
        self.mixture = Mixture(
            [len(d.records) for d in data],
            [d.weight for d in data],
            batch_size=config.batch_size,
            seed=config.seed,
            accumulate=config.mixture == "accumulate",
        )
        for samples in self.mixture.blocks:
            if samples % processes:
                raise ConfigError(
                    f"a step has {samples} samples for {processes} processes: expected a "
                    "multiple; change train.batch_size, or data.weight"
                )
        self.rank, self.processes = rank, processes

    def steps(self, start: int, stop: int) -> Iterator[list[TrainingItem]]:
        """This process's samples of each step, with their attachments opened ahead."""
        size = self.mixture.batch_size // self.processes
        own = slice(self.rank, None, self.processes)
        draws = (d for s in range(start, stop) for d in self.mixture.step(s)[own])
        step: list[TrainingItem] = []
        for item in self.items(draws):
            step.append(item)
            if len(step) == size:
                yield step
                step = []

    def items(self, draws: Iterable[SampleRef]) -> Iterator[TrainingItem]:
        """Samples in order, with their attachments opened ahead."""
        opened = prefetch(
            map(self._drawn, draws),
            self._opened,
            workers=self.config.workers,
            ahead=2 * self.mixture.batch_size // self.processes,
        )
        with closing(opened):
            for item in opened:
                yield self._tokenized(self._readable(item))

    def _drawn(self, draw: SampleRef) -> TrainingItem:
        """A sample, with its tokens if they do not depend on what its attachments hold."""
        data = self.data[draw.data]
        try:
            item = TrainingItem(draw, data.record(draw.index))
        except InputError as error:  # a line of a shard that is not a record
            nothing = Record(text=" ", origin=f"{data.name}, record {draw.index}")
            return TrainingItem(draw, nothing, why_not=_line(error))
        try:
            varies = any(medium_of(self.model, source).varies for source in item.record.images)
        except InputError as error:
            return replace(item, why_not=_line(error))
        return item if varies else self._tokenized(item)

    def _opened(self, item: TrainingItem) -> TrainingItem:
        """With its attachments, but those that were cut off; the work of a thread."""
        if item.why_not or not item.record.images:
            return item
        shown = item.record.images
        if item.sample is not NO_SAMPLE:
            shown = shown[: len(item.sample.layouts)]
        try:
            attachments = self.media.load(shown, item.draw.number)
        except InputError as error:
            return replace(item, why_not=_line(error))
        return replace(item, attachments=attachments)

    def _readable(self, item: TrainingItem) -> TrainingItem:
        """An episode without its images that cannot be opened; anything else as it is."""
        records = self.data[item.draw.data].records
        while item.why_not and isinstance(records, Episodes):
            broken = {m: why for m in item.record.images if (why := self._why_not(m))}
            if not broken:
                break
            for source, why in broken.items():
                if records.leave_out(source):
                    log.warning("left out of all episodes: %s", why)
            item = self._opened(self._drawn(item.draw))
        return item

    def _why_not(self, source: Medium) -> str:
        """Why an attachment cannot be opened; "" if it can."""
        try:
            self.media.load([source], 0)
        except InputError as error:
            return _line(error)
        return ""

    def _tokenized(self, item: TrainingItem) -> TrainingItem:
        """With its tokens, in which the layouts of its attachments stand."""
        if item.why_not or item.sample is not NO_SAMPLE:
            return item
        turned = False
        if chance := self.data[item.draw.data].next_image:
            drawn = np.random.default_rng([self.config.seed, 3, item.draw.number]).random()
            turned = drawn < chance
        limit = min(self.config.max_length, self.config.pack or self.config.max_length)
        try:
            layouts = layouts_of(self.model, item.attachments or item.record.images)
            sample = tokenize(
                self.model, item.record, layouts=layouts, max_length=limit, next_image=turned
            )
        except InputError as error:
            return replace(item, attachments=(), why_not=_line(error))
        kept = item.attachments[: len(sample.layouts)]
        return replace(item, sample=sample, attachments=kept)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def parts(
    items: Sequence[TrainingItem],
    size: int | None,
    *,
    by_data: bool = False,
    by_length: bool = False,
) -> list[list[TrainingItem]]:
    """Samples in parts of one forward pass each.

    Args:
        items: In their order.
        size: Most samples of a part; None for as many as there are.
        by_data: Whether no part has samples of several data sets, whose images may be of several
            kinds.
        by_length: Whether samples of like length share a part, so that little of it is padding.
            Only the order within the step changes, which depends on the step's samples alone.
    """
    size = size or max(1, len(items))
    groups = [list(items)]
    if by_data:
        groups = [list(g) for _, g in groupby(items, key=lambda i: i.draw.data)]
    if by_length:
        groups = [
            sorted(g, key=lambda i: len(i.sample.ids)) if len(g) > size else g for g in groups
        ]
    return [g[i : i + size] for g in groups for i in range(0, len(g), size)]
