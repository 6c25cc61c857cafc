"""A dual encoder as a trainee: contrastive training, and how good the model is at naming images.

Towers may be trained from images and texts, or stay locked (LiT, Zhai et al. 2022, arXiv
2111.07991): what a locked encoder makes of an image or a text is then computed once and kept on
disk, and a step runs the heads alone. A step is the same sum whatever it is split into: chunks of
gradient caching, tiles of the loss, or processes.

Letters: B pairs of this process, N pairs of all processes, K classes or texts, D width of the
common space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from isthmus.config.model import TrainConfig
from isthmus.data.features import FeatureCache
from isthmus.errors import ConfigError, TrainingError
from isthmus.model.checkpoint import DESCRIPTION, WEIGHTS
from isthmus.model.clip.checkpoint import description_of, save_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import JoinedImageTower, JoinedTextTower
from isthmus.training.feed import as_sets
from isthmus.training.loader import Augment
from isthmus.training.locked import PooledViews, TextCache
from isthmus.training.losses.contrastive import clip_loss, siglip_loss
from isthmus.training.losses.gradient_cache import cached_backward
from isthmus.training.optim import contrastive_optimizer
from isthmus.training.pairs import (
    Pair,
    PairFeed,
    PairSet,
    all_images,
    names_of,
    number_of,
    same_things,
)
from isthmus.training.precision import autocast
from isthmus.training.processes import Processes
from isthmus.training.trainee import Evaluation, Pass

IMAGES_AT_ONCE = 256
"""Images of one pass in an evaluation."""
NOT_FOR_PAIRS = (
    "micro_batch_size",
    "mixture",
    "pack",
    "max_length",
    "lr_connector",
    "lr_lora",
    "gradient_checkpointing",
    "augment",
    "sharding",
    "init",
    "sample_answers",
)
"""Fields of TrainConfig that say nothing of a dual encoder."""


class DualEncoderTrainee:
    """A dual encoder with its pairs and its loss.

    Args:
        model: The model; it is moved to the device of this process.
        feed: Where pairs come from.
        config: The run's configuration; its precision is decided.
        processes: Those that share the run.
        held_out: Labelled images that are looked at and never trained on.
    """

    def __init__(
        self,
        model: DualEncoder,
        feed: PairFeed,
        config: TrainConfig,
        processes: Processes,
        held_out: PairFeed | None = None,
    ) -> None:
        self.model, self.feed, self.config, self.processes = model, feed, config, processes
        self.held_out = held_out
        records = [len(d.records) for d in feed.data]
        self.identity = {"model": description_of(model), "number of records": records}
        self.files: tuple[str, ...] = (WEIGHTS, DESCRIPTION)
        self.names = ["pairs"]
        self.evaluates = held_out is not None
        model.to(processes.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        locked = locked_parts(model)
        self.buffers = {n: b for n, b in model.named_buffers() if not n.startswith(locked)}
        self.optimizer: torch.optim.Optimizer = contrastive_optimizer(
            model, self.parameters, config
        )
        self.group = dist.group.WORLD if processes.count > 1 else None

    def steps(self, start: int, stop: int) -> Iterator[list[Pair]]:
        """This process's pairs of each step."""
        return self.feed.steps(start, stop)

    def share(self, drawn: Sequence[Pair]) -> Any:
        """How many pairs there are, numbers of their names, and what is wrong with the others."""
        usable = [p for p in drawn if not p.why_not]
        numbers = [(number_of(p.first), number_of(p.name)) for p in usable]
        if self.config.contrastive.same_name == "negative":
            numbers = []
        return len(usable), numbers, [f"{p}: {p.why_not}" for p in drawn if p.why_not][:5]

    def backward(
        self, step: int, drawn: Sequence[Pair], shares: Sequence[Any], scale: float
    ) -> Pass:
        """Vectors of all pairs, the loss, and gradients."""
        if not all(count for count, *_ in shares):
            listed = "; ".join([b for *_, broken in shares for b in broken][:5])
            raise TrainingError(f"no pair of step {step + 1} can be used: {listed}")
        pairs = [p for p in drawn if not p.why_not]
        loss = float(self._loss(pairs, self._names(shares), scale))
        return Pass(loss, [loss], [1])

    def _names(self, shares: Sequence[Any]) -> Tensor | None:
        """Numbers (B,) of this process's pairs, the same for pairs that show the same thing."""
        if self.config.contrastive.same_name == "negative":
            return None
        found = same_things([number for _, numbers, _ in shares for number in numbers])
        rank = self.processes.rank
        first = sum(count for count, *_ in shares[:rank])
        return torch.tensor(found[first : first + shares[rank][0]], device=self.processes.device)

    def _loss(self, pairs: Sequence[Pair], names: Tensor | None, scale: float) -> Tensor:
        """This process's share of the loss; its gradients are made, multiplied by `scale`."""
        contrastive = self.config.contrastive

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            how: dict[str, Any] = {"names": names, "group": self.group}
            how["same_name"] = contrastive.same_name
            factor = self.model.logit_scale.exp()
            if self.model.logit_bias is None:
                return clip_loss(images, texts, factor, **how)
            return siglip_loss(images, texts, factor, self.model.logit_bias, **how)

        size = contrastive.chunk or len(pairs)
        chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        encode = encoders(self.model, self.feed)
        with autocast(self.processes.device, self.config):
            if len(chunks) > 1:
                sides = (encode[0], chunks), (encode[1], chunks)
                return cached_backward(loss, *sides, scale=scale)
            value = loss(encode[0](pairs), encode[1](pairs))
        (value * scale).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def updated(self) -> None:
        """Keeps the factor on similarities within its bounds."""
        contrastive = self.config.contrastive
        bounds = math.log(contrastive.least_scale), math.log(contrastive.most_scale)
        with torch.no_grad():
            self.model.logit_scale.clamp_(*bounds)

    def entry(self) -> dict[str, Any]:
        """The factor on similarities, and the bias if there is one."""
        bias = self.model.logit_bias
        return {
            "scale": round(float(self.model.logit_scale.detach().exp()), 4),
            **({} if bias is None else {"bias": round(float(bias.detach()), 4)}),
        }

    def evaluate(self, folder: Path) -> Evaluation:
        """Share of labelled images that are found."""
        assert self.held_out is not None
        shares = zero_shot_accuracy(self.model, self.held_out, self.processes)
        return Evaluation(shares, 1 - sum(shares.values()) / len(shares))

    def writer(self, extra: Mapping[str, Any]) -> Callable[[Path], object]:
        """The model as it is when it is written."""
        return partial(save_clip, self.model, extra=extra)


def dual_encoder_trainee(
    model: DualEncoder,
    data: Any,
    evaluation: Sequence[PairSet],
    config: TrainConfig,
    processes: Processes,
    cache: Path,
    augment: Augment,
    quiet: bool,
) -> DualEncoderTrainee:
    """The trainee of a run, with its feature caches filled; see `train`."""
    check_options(config)
    sets = as_sets(data, PairSet, one_set)
    description_of(model)  # refuses now what could not be saved later
    model.to(processes.device)
    locked = locked_parts(model) if config.feature_cache else ()
    texts = TextCache(cache, model) if "text.encoder." in locked else None
    where: dict[str, Any] = {"rank": processes.rank, "processes": processes.count, "texts": texts}
    plain = replace(config, contrastive=replace(config.contrastive, views=1))
    feeds = []
    for some, how in ((sets, config), (evaluation, plain))[: 2 if evaluation else 1]:
        images, views = None, how.contrastive.views
        if "image.encoder." in locked and views:
            assert isinstance(model.image, JoinedImageTower)
            images = FeatureCache(cache, PooledViews(model.image, views, augment, how.seed))
            own = islice(all_images(some), processes.rank, None, processes.count)
            size = max(1, 16 // views)
            images.fill(own, quiet=quiet, batch_size=size, workers=config.workers)
            processes.wait()
            images.store.refresh()
        feed = PairFeed(some, how, model.preprocess, images=images, augment=augment, **where)
        if texts is not None:
            texts.fill(feed.all_texts(), processes, quiet=quiet)
        feeds.append(feed)
    return DualEncoderTrainee(model, feeds[0], config, processes, *feeds[1:])


def one_set(records: Any, name: str) -> PairSet:
    """A data set of records alone."""
    return PairSet(records, name=name or "pairs")


def check_options(config: TrainConfig) -> None:
    """Refuses what would be ignored.

    Raises:
        ConfigError: If a field that is set is not for dual encoders.
    """
    plain = TrainConfig()
    for key in NOT_FOR_PAIRS:
        if getattr(config, key) != getattr(plain, key):
            raise ConfigError(
                f"train.{key} is for a vision-language model, and a dual encoder is trained: "
                "leave it out"
            )


def locked_parts(model: DualEncoder) -> tuple[str, ...]:
    """Beginnings of the names of what is locked."""
    return tuple(
        f"{place}.encoder."
        for place, tower in (("image", model.image), ("text", model.text))
        if isinstance(tower, (JoinedImageTower, JoinedTextTower)) and tower.locked
    )


def encoders(
    model: DualEncoder, feed: PairFeed
) -> tuple[Callable[[Sequence[Pair]], Tensor], Callable[[Sequence[Pair]], Tensor]]:
    """From pairs to vectors (B, D) of length 1: of their images, and of their texts."""

    def images(pairs: Sequence[Pair]) -> Tensor:
        found = feed.inputs(pairs).to(model.device)
        if feed.images is None:
            return model.encode_pixels(found)
        assert isinstance(model.image, JoinedImageTower)
        return F.normalize(model.image.map(found), dim=-1)

    def texts(pairs: Sequence[Pair]) -> Tensor:
        return encode_texts(model, feed, [p.text for p in pairs])

    return images, texts


def encode_texts(model: DualEncoder, feed: PairFeed, texts: Sequence[str]) -> Tensor:
    """Vectors (K, D) of length 1 of texts, from kept vectors where there are any."""
    if feed.texts is None:
        return model.encode_texts(texts)
    assert isinstance(model.text, JoinedTextTower)
    return F.normalize(model.text.map(feed.texts.get(texts).to(model.device)), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    model: DualEncoder, feed: PairFeed, processes: Processes
) -> dict[str, float]:
    """The share of each data set's images that are given one of their own names.

    Classes are the records' first names; each class's vector is the mean over its texts, as in
    `ZeroShotClassifier`. An image that cannot be read counts as not found.

    Args:
        model: The model, in evaluation mode.
        feed: Of the data sets.
        processes: Those that share the work.
    """
    images, _ = encoders(model, feed)
    shares = {}
    for number, data in enumerate(feed.data):
        labels = data.labelled()
        flat = [text for many in labels.values() for text in many]
        owner = torch.tensor([k for k, many in enumerate(labels.values()) for _ in many])
        vectors = encode_texts(model, feed, flat).float()
        sums = vectors.new_zeros(len(labels), vectors.shape[1])
        weights = F.normalize(sums.index_add_(0, owner.to(vectors.device), vectors), dim=-1)
        classes, right = list(labels), 0
        own = range(processes.rank, len(data.records), processes.count)
        for start in range(0, len(own), IMAGES_AT_ONCE):
            drawn = [feed.pair(number, i, (0, 0, 0, 0)) for i in own[start:][:IMAGES_AT_ONCE]]
            usable = [p for p in map(feed.opened, drawn) if not p.why_not]
            if usable:
                best = (images(usable).float() @ weights.T).argmax(dim=1).tolist()
                for pair, k in zip(usable, best, strict=True):
                    right += classes[k] in names_of(data.records[pair.index])
        shares[data.name] = float(processes.sum([right])[0]) / len(data.records)
    return shares
