"""The strip of a vision-language model as a trainee, with the language model's loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.config.clip import ContrastiveConfig
from isthmus.config.file import to_mapping
from isthmus.config.model import TrainConfig
from isthmus.data.episodes import Episodes
from isthmus.data.features import FeatureCache
from isthmus.data.piece_cache import PieceCache
from isthmus.data.records import Record, frames, media_of
from isthmus.errors import ConfigError, InputError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.placement import offloaded
from isthmus.model.checkpoint import DESCRIPTION, WEIGHTS, description_of, strip_state, write_model
from isthmus.model.features import Encoding, PieceEncoding
from isthmus.model.media.base import InPieces, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.evaluate import answers, held_out_losses
from isthmus.training.feed import DataSet, Feed, TrainingItem, as_sets, parts
from isthmus.training.loader import Augment, MediaLoader
from isthmus.training.losses.language import LanguageLoss
from isthmus.training.optim import optimizer_for
from isthmus.training.precision import DTYPES, autocast, decided
from isthmus.training.processes import Processes, shard, whole
from isthmus.training.trainee import Evaluation, Pass


class VisionLanguageTrainee:
    """The trained parameters of a vision-language model, with their data and their loss.

    Args:
        model: The model; it is moved to the device of this process and into the run's precision.
        data: Data sets, none of them empty.
        config: The run's configuration; its precision is decided.
        processes: Those that share the run.
        media: Where attachments come from.
        evaluation: Data sets that are looked at and never trained on.
        plain: Where their attachments come from; never augmented.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        data: Sequence[DataSet],
        config: TrainConfig,
        processes: Processes,
        media: MediaLoader,
        evaluation: Sequence[DataSet] = (),
        plain: MediaLoader | None = None,
    ) -> None:
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.evaluation, self.plain = evaluation, plain or media
        self.identity = {
            "model": to_mapping(model.config),
            "frozen tensors of the strip": _digest_of_frozen(model),
            "number of records": [len(d.records) for d in data],
        }
        self.description = description_of(model)
        self.files: tuple[str, ...] = (WEIGHTS, DESCRIPTION)
        self.names = [d.name for d in data]
        self.evaluates = bool(evaluation)
        check_placement(model, config, processes.count)
        model.to(processes.device)
        freeze_in_half(model, config)
        if config.gradient_checkpointing:
            model.language.checkpoint_activations()
        self.sharded = config.sharding == "fsdp" and processes.count > 1
        if self.sharded:
            shard(model, processes)
        self.parameters = model.trained_parameters()
        self.buffers: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer = optimizer_for(
            model, self.parameters, config, spread=self.sharded
        )
        self.loss = LanguageLoss(config.pack, always_images=self.sharded)
        self.feed = Feed(model, data, config, media, rank=processes.rank, processes=processes.count)

    def steps(self, start: int, stop: int) -> Iterator[list[TrainingItem]]:
        """This process's samples of each step."""
        return self.feed.steps(start, stop)

    def share(self, drawn: Sequence[TrainingItem]) -> list[int]:
        """Learned tokens of each data set."""
        counts = [0] * len(self.data)
        for item in drawn:
            if not item.why_not:
                counts[item.draw.data] += self.loss.count(item)
        return counts

    def backward(
        self, step: int, drawn: Sequence[TrainingItem], shares: Sequence[list[int]], scale: float
    ) -> Pass:
        """Forward and backward passes over the parts of a step."""
        counts = [sum(own) for own in zip(*shares, strict=True)]
        weights = token_weights(counts, self.data, self.config)
        sums, total = [0.0] * len(self.data), 0.0
        by_data = self.config.mixture == "accumulate"
        size, by_length = self.config.micro_batch_size, not self.config.pack
        for part in parts(drawn, size, by_data=by_data, by_length=by_length):
            kept = [i for i in part if not i.why_not]
            if not kept and not self.loss.always_images:
                continue
            own = [weights[i.draw.data] for i in kept]
            with autocast(self.processes.device, self.config):  # the backward pass is outside of it
                loss = self.loss.loss(self.model, kept, own)
            (loss.total * scale).backward()  # type: ignore[no-untyped-call]
            total += float(loss.total.detach())
            found = loss.losses.double().cpu()
            for number, value in zip(loss.owner.tolist(), found.tolist(), strict=True):
                sums[kept[number].draw.data] += value
        return Pass(total, sums, counts, tokens=sum(counts))

    def updated(self) -> None:
        """Nothing is bounded."""

    def entry(self) -> dict[str, Any]:
        """How far gates are open."""
        return gates(self.model)

    def evaluate(self, folder: Path) -> Evaluation:
        """Held-out losses, and a few answers."""
        config, processes = self.config, self.processes
        losses = held_out_losses(
            self.model, self.evaluation, config, self.loss, self.plain, processes
        )
        error = sum(losses.values()) / len(losses) if losses else float("inf")
        shown: list[dict[str, Any]] = []
        if config.sample_answers and processes.is_main and not self.sharded:
            shown = answers(self.model, self.evaluation, config, self.plain, folder)
        return Evaluation(losses, error, shown)

    def writer(self, extra: Mapping[str, Any]) -> Callable[[Path], object]:
        """The strip, gathered from all processes."""
        strip = {n: whole(t).cpu() for n, t in strip_state(self.model).items()}
        return partial(write_model, description={**self.description, **extra}, state=strip)


def _digest_of_frozen(model: VisionLanguageModel) -> str:
    """A hash of what of the strip is not trained, such as the names that a recipe fitted."""
    trained, found = model.trained_parameters(), hashlib.sha256()
    for name, tensor in sorted(strip_state(model).items()):
        if name not in trained:
            found.update(name.encode())
            found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def vision_language_trainee(
    model: VisionLanguageModel,
    data: Any,
    evaluation: Sequence[DataSet],
    config: TrainConfig,
    processes: Processes,
    cache: Path,
    augment: Augment,
    quiet: bool,
) -> VisionLanguageTrainee:
    """The trainee of a run, with its feature cache filled; see `train`."""
    check_options(config)
    sets = as_sets(data, DataSet, one_set)
    check_episodes(model, [*sets, *evaluation])
    if config.augment:
        plain = MediaLoader(model)
        media = MediaLoader(model, seed=config.seed, augment=augment)
        return VisionLanguageTrainee(model, sets, config, processes, media, evaluation, plain)
    caches = filled_caches(model, [*sets, *evaluation], config, processes, cache, quiet)
    media = MediaLoader(model, caches)
    return VisionLanguageTrainee(model, sets, config, processes, media, evaluation)


def cached_media(model: VisionLanguageModel) -> dict[str, Encoding | PieceEncoding]:
    """What a feature cache keeps, by the name of the medium.

    Of media whose layouts vary those that come in pieces: the layout is kept beside them.
    """
    found: dict[str, Encoding | PieceEncoding] = {}
    for medium in model.media:
        if isinstance(medium, InPieces):
            found[medium.name] = medium.pieces(model)
        elif not medium.varies and (encoding := medium.encoding(model)) is not None:
            found[medium.name] = encoding
    return found


def cache_of(folder: Path, encoding: Encoding | PieceEncoding) -> FeatureCache | PieceCache:
    """The cache that keeps an encoding; `takes_arrays` tells one from pieces."""
    if hasattr(encoding, "takes_arrays"):
        return FeatureCache(folder, cast(Encoding, encoding))
    return PieceCache(folder, encoding)


def filled_caches(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    processes: Processes,
    folder: Path,
    quiet: bool,
) -> dict[str, FeatureCache | PieceCache]:
    """A feature cache for each medium that keeps features, filled, by the medium's name.

    Media of one encoding, such as images and the frames of clips, share a cache.
    """
    if not config.feature_cache:
        return {}
    model.to(processes.device)
    by_encoding: dict[str, FeatureCache | PieceCache] = {}
    caches: dict[str, FeatureCache | PieceCache] = {}
    for name, encoding in cached_media(model).items():
        if encoding.name not in by_encoding:
            by_encoding[encoding.name] = cache_of(folder, encoding)
        caches[name] = by_encoding[encoding.name]
    for own in by_encoding.values():
        names = {name for name, cache in caches.items() if cache is own}
        files = islice(files_of(model, data, names), processes.rank, None, processes.count)
        own.fill(files, quiet=quiet, workers=config.workers)
        processes.wait()
        own.store.refresh()
    return caches


def one_set(records: Sequence[Record], name: str) -> DataSet:
    """A data set of records alone."""
    return DataSet(records, name=name or "data")


def check_options(config: TrainConfig) -> None:
    """Refuses what the strip's training does not do.

    Raises:
        ConfigError: If something is asked for that would be ignored.
    """
    if config.contrastive != ContrastiveConfig():
        raise ConfigError(
            "[train.contrastive] is for a dual encoder, and a vision-language model is trained: "
            "leave it out"
        )


def check_placement(model: VisionLanguageModel, config: TrainConfig, processes: int) -> None:
    """Refuses what cannot be trained through a language model that a map places.

    Raises:
        ConfigError: If several processes share the run, or weights lie beside the devices and
            autograd would hold all of them there.
    """
    if not model.language.placed:
        return
    if processes > 1:
        raise ConfigError(
            f"language.device_map lays one model over the devices, and {processes} processes came: "
            'start one, or leave device_map out and shard with train.sharding = "fsdp"'
        )
    if not config.gradient_checkpointing and offloaded(model.language.model):
        raise ConfigError(
            "language.device_map leaves weights in memory or on disk, and the graph of a training "
            "step would hold all of them on the device: set train.gradient_checkpointing = true"
        )


def check_episodes(model: VisionLanguageModel, data: Sequence[DataSet]) -> None:
    """Refuses episodes in which nobody could know what is asked.

    Raises:
        ConfigError: If the odd one of several images is asked for and only the last one can be
            seen.
    """
    for one in data:
        records = one.records
        if not isinstance(records, Episodes):
            continue
        if records.config.odd and model.fusion.sees == "last" and not model.fusion.in_text:
            raise ConfigError(
                f"data.episodes.odd = {records.config.odd} asks which of several images is "
                'different, and with fusion.sees = "last" a token sees the last one alone: '
                'expected fusion.sees = "previous", fusion.inline = true, or data.episodes.odd = 0'
            )


def files_of(
    model: VisionLanguageModel, data: Sequence[DataSet], media: Container[str]
) -> Iterator[FileRef]:
    """Every attachment of some media; records that cannot be read are named when they are drawn."""
    for one in data:
        for source in media_of(one.records):
            with suppress(InputError):  # of no known medium
                if medium_of(model, source).name in media:
                    yield from frames(source)


def freeze_in_half(model: VisionLanguageModel, config: TrainConfig) -> None:
    """Puts the frozen language model into the run's precision; what is trained stays fp32.

    One that a map places keeps the precision that it was loaded in.
    """
    decided_config = decided(config, model.device)
    dtype = DTYPES[decided_config.precision]
    # what the model came with stays, unless another one is asked for or far faster
    if config.attention != "auto" or decided_config.attention == "eager":
        model.language.model.set_attn_implementation(decided_config.attention)
    for parameter in () if model.language.placed else model.language.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def token_weights(
    counts: Sequence[int], data: Sequence[DataSet], config: TrainConfig
) -> list[float]:
    """What a token of each data set counts for in a step.

    Drawn together, tokens are averaged over the whole step and weighted: with weights of 1 the loss
    is the mean over all tokens. Accumulated, each data set's own mean is weighted (Flamingo,
    section 2.4, equation 2).

    Args:
        counts: Tokens of each data set in the step, over all processes.
        data: The data sets.
        config: Which of the two.
    """
    if config.mixture == "accumulate":
        return [d.loss_weight / max(1, c) for d, c in zip(data, counts, strict=True)]
    return [d.loss_weight / max(1, sum(counts)) for d in data]


def gates(model: VisionLanguageModel) -> dict[str, Any]:
    """How far each gated block is open, tanh of its gates; all processes must call it together."""
    opened = {
        block: {n: round(whole(gate.detach()).tanh().item(), 5) for n, gate in own.items()}
        for block, own in model.fusion.gates().items()
    }
    return {"gates": opened} if opened else {}
