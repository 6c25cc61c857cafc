"""What each step of a contrastive run works on: pairs of images and texts.

A record may have several images of the same thing, several names for it, and each name several
texts by the templates; each image may have several views. Of each one is drawn anew whenever the
record is. What is drawn depends on the seed and the step alone.

Letters: B pairs of this process, N pairs of all processes, R records, V views, D width.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.classification.templates import Templates, prompts_of
from isthmus.config.model import TrainConfig
from isthmus.data.features import FeatureCache
from isthmus.data.mixture import Mixture
from isthmus.data.records import Record, frames
from isthmus.errors import ConfigError, ImageError, InputError, PromptError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import decode
from isthmus.media.prefetch import prefetch
from isthmus.prompts.prompt import IMAGE_TAG, lone_surrogate
from isthmus.training.loader import Augment, augmented
from isthmus.training.locked import TextCache, key_of, view_of

PLAIN = "{}"


@dataclass(frozen=True)
class PairSet:
    """Records with images and names, and how they become pairs.

    Attributes:
        records: Any sequence; read when they are drawn.
        templates: How names become texts; see `isthmus.classification.templates.prompts_of`.
        weight: Share of the draws.
        name: What logs call it.
        vectors: (R, V, D) or (R, D) in place of the records' images: pooled features of a locked
            image tower that were computed elsewhere, such as a class's weights in the encoder's
            own classifier.
    """

    records: Sequence[Record]
    templates: Templates = PLAIN
    weight: float = 1.0
    name: str = "pairs"
    vectors: Tensor | None = None
    _texts: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def texts(self, name: str) -> list[str]:
        """The texts of a name.

        Raises:
            PromptError: If a template has no `{}`, or the name no description.
        """
        if self.templates == PLAIN:
            return [name]
        if name not in self._texts:
            self._texts[name] = prompts_of([name], self.templates)[0]
        return self._texts[name]

    def labelled(self) -> dict[str, list[str]]:
        """Each label's texts, in the order of first use: labels are records' first names."""
        labels: dict[str, list[str]] = {}
        for index in range(len(self.records)):
            with suppress(InputError):
                label = names_of(self.records[index])[0]
                labels.setdefault(label, [])
        return {label: self.texts(label) for label in labels}


def names_of(record: Record) -> tuple[str, ...]:
    """What a record's images show, in one way or several.

    Raises:
        InputError: If it says nothing, or something that is no Unicode.
    """
    given = record.names or (record.answer.replace(IMAGE_TAG, " "),)
    found = tuple(name.strip() for name in given if name.strip())
    if not found:
        raise InputError(f"{record.origin or 'a record'} has neither a name nor a text")
    if wrong := next(filter(None, map(lone_surrogate, found)), ""):
        raise InputError(f"{record.origin}: {wrong}" if record.origin else wrong)
    return found


def images_of(record: Record) -> tuple[FileRef, ...]:
    """A record's images, frames of clips among them, without what is of another kind.

    Raises:
        InputError: If it has none.
    """
    found = tuple(f for medium in record.images for f in frames(medium) if f.kind == "image")
    if not found:
        raise InputError(f"{record.origin or record.answer!r} has no image")
    return found


@dataclass(frozen=True)
class Pair:
    """One sample of a step.

    Attributes:
        data, index: Which data set and record.
        first: The record's first name.
        name: The name that was drawn.
        text: The text that was drawn for it.
        image: The image that was drawn; None where the data set has vectors.
        place: Where the image's vectors are: row of the cache, or of the data set's vectors.
        view: Which view.
        pixels: (3, H, W), where no vectors are kept.
        why_not: What is wrong with it, if it cannot be used.
    """

    data: int
    index: int
    first: str = ""
    name: str = ""
    text: str = ""
    image: FileRef | None = None
    place: int = -1
    view: int = 0
    pixels: Tensor | None = None
    why_not: str = ""

    def __str__(self) -> str:
        return str(self.image or self.name or f"record {self.index}")


class PairFeed:
    """The pairs of a run, for one of its processes.

    Args:
        data: Data sets, none of them empty.
        config: Batch size, seed, views.
        preprocess: From an image to pixels.
        images: Vectors of images; None gives pixels.
        texts: Vectors of texts; None gives texts.
        augment: What makes views.
        rank: Number of this process.
        processes: How many there are; each takes every so many-th pair of a step.

    Raises:
        ConfigError: If a step has fewer pairs than processes, or vectors do not fit.
    """

    def __init__(
        self,
        data: Sequence[PairSet],
        config: TrainConfig,
        preprocess: Callable[[Image.Image], Tensor],
        *,
        images: FeatureCache | None = None,
        texts: TextCache | None = None,
        augment: Augment = augmented,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if config.batch_size < processes:
            raise ConfigError(
                f"train.batch_size is {config.batch_size} for {processes} processes: expected at "
                "least one pair for each"
            )
        self.data, self.config, self.preprocess = list(data), config, preprocess
        self.images, self.texts, self.augment = images, texts, augment
        self.rank, self.processes = rank, processes
        self.vectors = [self._checked_vectors(one) for one in data]
        self.mixture = Mixture(
            [len(d.records) for d in data],
            [d.weight for d in data],
            batch_size=config.batch_size,
            seed=config.seed,
        )
        self._rows: dict[tuple[int, int, int], int] = {}

    def _checked_vectors(self, data: PairSet) -> Tensor | None:
        """A data set's vectors (R, V, D)."""
        if data.vectors is None:
            return None
        if self.images is None:
            raise ConfigError(
                f"{data.name} has vectors for images: expected a locked image tower of "
                "DualEncoder.join, train.feature_cache = true and train.contrastive.views above 0"
            )
        shape, width = tuple(data.vectors.shape), self.images.shape[1]
        if len(shape) not in (2, 3) or (shape[0], shape[-1]) != (len(data.records), width):
            raise ConfigError(
                f"the vectors of {data.name} are {shape}: expected ({len(data.records)}, {width}) "
                f"or ({len(data.records)}, views, {width})"
            )
        return data.vectors.float().view(shape[0], -1, width)

    def steps(self, start: int, stop: int) -> Iterator[list[Pair]]:
        """This process's pairs of each step, counted from 0, with their images opened ahead."""
        size = len(range(self.rank, self.config.batch_size, self.processes))
        drawn = (pair for step in range(start, stop) for pair in self.drawn(step))
        workers = self.config.workers if self.images is None else 0
        opened = prefetch(drawn, self.opened, workers=workers, ahead=size)
        while step := list(islice(opened, size)):
            yield step

    def drawn(self, step: int) -> Iterator[Pair]:
        """This process's pairs of a step, without pixels."""
        draws = self.mixture.step(step)
        chances = np.random.default_rng([self.config.seed, 4, step]).random((len(draws), 4))
        for draw, chance in list(zip(draws, chances, strict=True))[self.rank :: self.processes]:
            yield self.pair(draw.data, draw.index, chance, draw.number)

    def pair(self, data: int, index: int, chance: Sequence[float], number: int = 0) -> Pair:
        """A pair of a record.

        Args:
            data: Number of the data set.
            index: Number of the record.
            chance: Four numbers in [0, 1): which image, view, name and template.
            number: The sample's number, which decides what a view that is made anew looks like.
        """
        source = self.data[data]
        told: dict[str, Any] = {}
        try:
            record = source.records[index]
            names = names_of(record)
            name = _pick(names, chance[2])
            told |= {"first": names[0], "name": name, "text": _pick(source.texts(name), chance[3])}
            if (vectors := self.vectors[data]) is not None:
                told |= {"place": index, "view": int(chance[1] * vectors.shape[1])}
            else:
                shown = images_of(record)
                at = int(chance[0] * len(shown))
                told["image"] = shown[at]
                told |= self._kept((data, index, at), shown[at], chance[1], number)
        except PromptError:
            raise  # of the templates, and so of every record
        except InputError as error:
            told["why_not"] = " ".join(str(error).split())
        return Pair(data, index, **told)

    def _kept(
        self, where: tuple[int, int, int], image: FileRef, chance: float, number: int
    ) -> dict[str, int]:
        """Which view of an image, and where its vectors are."""
        if self.images is None:
            views = self.config.contrastive.views
            return {"view": int(chance * views) if views else -1 - number}
        if where not in self._rows:
            self._rows[where] = self.images.row(image)
        return {"place": self._rows[where], "view": int(chance * self.images.shape[0])}

    def opened(self, pair: Pair) -> Pair:
        """A pair with its pixels, where no vectors are kept."""
        if pair.why_not or pair.image is None or self.images is not None:
            return pair
        try:
            if pair.image.is_features:
                raise ImageError(f"{pair.image} holds features: expected an image")
            data = pair.image.read()
            shown = decode(pair.image, data)
        except ImageError as error:
            return replace(pair, why_not=" ".join(str(error).split()))
        key = hashlib.sha256(data).hexdigest()
        if pair.view < 0:
            generator = np.random.default_rng([self.config.seed, 5, -pair.view])
            shown = self.augment(shown, generator)
        else:
            shown = view_of(shown, pair.view, key, self.augment, self.config.seed)
        return replace(pair, pixels=self.preprocess(shown))

    # --- Batches ----------------------------------------------------------------------------

    def inputs(self, pairs: Sequence[Pair]) -> Tensor:
        """Vectors (B, D) of pairs' images, or their pixels (B, 3, H, W)."""
        if self.images is None:
            return torch.stack([p.pixels for p in pairs if p.pixels is not None])
        found = torch.empty(len(pairs), self.images.shape[1])
        for data in {p.data for p in pairs}:
            here = [i for i, p in enumerate(pairs) if p.data == data]
            places = np.array([pairs[i].place for i in here])
            views = np.array([pairs[i].view for i in here])
            vectors = self.vectors[data]
            if vectors is None:
                found[here] = torch.from_numpy(self.images.store.gather(places, views))
            else:
                found[here] = vectors[places, views]
        return found

    def all_texts(self) -> list[str]:
        """Every text that may be drawn, once."""
        found: dict[str, None] = {}
        for source in self.data:
            for index in range(len(source.records)):
                names: tuple[str, ...] = ()
                with suppress(InputError):
                    names = names_of(source.records[index])
                for name in names:
                    found.update(dict.fromkeys(source.texts(name)))
        return list(found)


def _pick(several: Sequence[str], chance: float) -> str:
    return several[int(chance * len(several))]


def all_images(data: Sequence[PairSet]) -> Iterator[FileRef]:
    """Every image of data sets without vectors; what cannot be read is named when drawn."""
    for source in data:
        for index in range(0 if source.vectors is not None else len(source.records)):
            with suppress(InputError):
                yield from images_of(source.records[index])


@functools.lru_cache(maxsize=1 << 20)
def number_of(name: str) -> int:
    """A number for a name, the same in every process; case does not count."""
    return int(key_of(name.casefold())[:15], 16)


def same_things(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """A number for each pair (N), the same for pairs that show the same thing.

    Two pairs do if the first names of their records are one, or the name drawn for one is a name of
    the other; and so does whatever is linked by such pairs.

    Args:
        pairs: Numbers of the first name and of the drawn name of each.

    Example:
        >>> same_things([(1, 1), (2, 1), (3, 3), (2, 2)])
        [1, 1, 3, 1]
    """
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := parent.setdefault(number, number)) != number:
            parent[number] = parent[above]
            number = above
        return number

    for first, drawn in pairs:
        parent[root(first)] = root(drawn)
    return [root(first) for first, _ in pairs]
