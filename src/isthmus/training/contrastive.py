"""Contrastive training of dual encoders, on the foundations of the training loop.

Towers may be trained from pictures and texts, or stay locked (LiT, Zhai et al. 2022, arXiv
2111.07991): what a locked encoder makes of a picture or a text is then computed once and kept on
disk, and a step runs the heads alone. A step is the same sum whatever it is split into: chunks of
gradient caching, tiles of the loss, or processes.

Letters: B pairs of this process, N pairs of all processes, D width of the common space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.gradient_cache import cached_backward
from isthmus.align.joined import JoinedImageTower, JoinedTextTower
from isthmus.align.losses import clip_loss, siglip_loss
from isthmus.align.saved import DESCRIPTION, WEIGHTS, description_of, save_dual_encoder
from isthmus.config_file import to_mapping
from isthmus.data.records import Record
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, TrainingError, TrainingStopped
from isthmus.training.contrastive_config import ContrastiveConfig, check
from isthmus.training.contrastive_data import (
    Pair,
    PairFeed,
    PairSet,
    all_pictures,
    names_of,
    number_of,
    same_things,
)
from isthmus.training.contrastive_features import Augment, PooledCache, TextCache
from isthmus.training.feed import augmented
from isthmus.training.log import RunLog
from isthmus.training.loop import Broken, asked_to_stop
from isthmus.training.optim import contrastive_optimizer, learning_rate_factor
from isthmus.training.processes import Processes, norm_of
from isthmus.training.progress import ProgressBar
from isthmus.training.state import (
    BEST,
    Progress,
    load_buffers,
    load_state,
    state_tensors,
    write_checkpoint,
)
from isthmus.training.step import StepResult

PICTURES_AT_ONCE = 256
"""Pictures of one pass in an evaluation."""


def train_contrastive(
    model: DualEncoder,
    pairs: str | Path | Sequence[Record] | Sequence[PairSet],
    config: ContrastiveConfig,
    out: str | Path,
    *,
    evaluation: Sequence[PairSet] = (),
    cache: str | Path | None = None,
    augment: Augment = augmented,
    quiet: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> DualEncoder:
    """Trains a dual encoder on pictures and their texts, and saves it.

    A run that finds its own state in `out` goes on from there, with the losses that it would have
    had. Started by `torchrun`, all processes share the pairs of each step, and each is compared
    with those of all.

    Args:
        model: The model; parts of it that are locked are not changed.
        pairs: A folder, a file or shards; records; or pair sets with their templates and shares.
        config: Steps, batch size, learning rate, seed, ...
        out: Folder of the run: the newest model, checkpoints, `best` and `log.jsonl`.
        evaluation: Labelled pictures that `config.evaluate_every` looks at: the share of each
            set's pictures whose name is found among all names of the set.
        cache: Folder of the vectors of locked encoders; None is `out`/features.
        augment: What makes a new view of a picture; by default a random crop, mirrored or not.
        quiet: No progress bar.
        on_step: Called with the number of steps done and the loss.

    Returns:
        The model.

    Raises:
        ConfigError: If a number is out of range, or the data has nothing in it.
        PromptError: If a template has no `{}`, or a text is longer than the text tower reads.
        TrainingError: If there is nothing to train, the loss is not finite, too many pictures are
            broken, or `out` holds another run. The last saved state is intact.
        TrainingStopped: If the process was asked to end (SIGTERM); the state is saved.
        CheckpointError: If a checkpoint cannot be written; the one before is intact.

    Example:
        >>> import isthmus as im, tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8), "red").save(folder / "red.png")
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> pairs = [im.Record.of(folder / "red.png", "", "red")]
        >>> config = ContrastiveConfig(steps=1, batch_size=1)
        >>> model = train_contrastive(model, pairs, config, folder / "run", quiet=True)
    """
    folder = Path(out)
    check(config)
    data = checked_sets(pairs)
    description = description_of(model)  # refuses now what could not be saved later
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    processes = Processes(model.device)
    model.to(processes.device)
    feed, held_out = _feeds(
        model, data, evaluation, config, cache or folder / "features", augment, processes, quiet
    )
    optimizer = contrastive_optimizer(parameters, config)
    described = json.dumps({"model": description["config"], **to_mapping(config)}, default=str)
    state = load_state(folder, parameters, optimizer, described)
    buffers = {n: b for n, b in model.named_buffers() if not n.startswith(_locked(model))}
    load_buffers(folder, buffers)
    stepper = ContrastiveStepper(model, feed, config, processes, optimizer, parameters)
    log = RunLog(folder, step=state.step) if processes.is_main else None
    broken = Broken(config.broken_share)
    bar = ProgressBar(config.steps, state.step, quiet=quiet or not processes.is_main)

    def save(step: int, best: float) -> None:
        """The first process writes."""
        if processes.is_main:
            tensors = state_tensors(parameters, optimizer)
            tensors |= {f"buffer.{n}": b.detach().cpu() for n, b in buffers.items()}
            extra = {"train": {**to_mapping(config), "steps_done": step}}
            write = partial(save_dual_encoder, model, extra=extra)
            progress, files = Progress(step, best), (WEIGHTS, DESCRIPTION)
            write_checkpoint(folder, progress, tensors, write, files, described, config.keep)
        processes.wait()

    def evaluate(step: int, best: float) -> float:
        """Share of labelled pictures that are found; the best model is kept."""
        assert held_out is not None
        model.eval()
        shares = zero_shot_accuracy(model, held_out, processes)
        model.train()
        error = 1 - sum(shares.values()) / len(shares)
        if log is not None:
            log.write({"step": step, "evaluation": shares, "held_out_loss": error})
            if error < best:
                save_dual_encoder(model, folder / BEST, extra={"evaluation": shares, "step": step})
        processes.wait()
        return min(best, error)

    best = state.best
    model.train()
    with asked_to_stop() as asked, bar, nullcontext() if log is None else closing(log):
        steps = feed.steps(state.step, config.steps)
        for step, drawn in enumerate(steps, start=state.step + 1):
            result = stepper.take(step - 1, drawn, stop=asked.is_set())
            last = step == config.steps
            bar.update(step, result.loss, result.samples, 0)
            if log is not None and result.broken:
                named = [{"picture": p, "why": w} for p, w in result.broken]
                log.write({"step": step, "broken": named})
            if log is not None and (last or step % config.log_every == 0):
                log.write({"step": step, **stepper.entry(result), **bar.rates()})
            broken.add(result)
            if on_step is not None:
                on_step(step, result.loss)
            if held_out and config.evaluate_every and (last or step % config.evaluate_every == 0):
                best = evaluate(step, best)
            if last or result.stop or step % config.save_every == 0:
                save(step, best)
            if result.stop and not last:
                raise TrainingStopped(
                    f"stopped after step {step} of {config.steps}, as asked; the same command "
                    "goes on from here"
                )
    return model.eval()


def checked_sets(pairs: Any) -> list[PairSet]:
    """What was passed as pair sets.

    Raises:
        ConfigError: If there is none, one is empty, or shares are none.
    """
    if isinstance(pairs, (str, Path)):
        sets = [PairSet(read_data(pairs), name=Path(str(pairs)).stem)]
    elif len(pairs) and not isinstance(pairs[0], PairSet):
        sets = [PairSet(pairs)]
    else:
        sets = list(pairs)
    if not sets:
        raise ConfigError("nothing to train on: no data set")
    if empty := [d.name for d in sets if not len(d.records)]:
        raise ConfigError(f"nothing to train on in {', '.join(empty)}: all records are held out")
    weights = [d.weight for d in sets]
    if not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
        raise ConfigError(f"data.weight is {weights}: expected none below 0 and one above it")
    return sets


def _locked(model: DualEncoder) -> tuple[str, ...]:
    """Beginnings of the names of what is locked."""
    return tuple(
        f"{place}.encoder."
        for place, tower in (("image", model.image), ("text", model.text))
        if isinstance(tower, (JoinedImageTower, JoinedTextTower)) and tower.locked
    )


def _feeds(
    model: DualEncoder,
    data: Sequence[PairSet],
    evaluation: Sequence[PairSet],
    config: ContrastiveConfig,
    cache: str | Path,
    augment: Augment,
    processes: Processes,
    quiet: bool,
) -> tuple[PairFeed, PairFeed | None]:
    """Where pairs come from, for training and for evaluation; fills the caches first."""
    locked = _locked(model) if config.feature_cache else ()
    bar = quiet or not processes.is_main
    plain = replace(config, views=1)
    texts = TextCache(cache, model) if "text.encoder." in locked else None
    where: dict[str, Any] = {"rank": processes.rank, "processes": processes.count, "texts": texts}
    feeds = []
    for sets, how in ((data, config), (evaluation, plain)):
        pictures = None
        if "image.encoder." in locked and how.views:
            assert isinstance(model.image, JoinedImageTower)
            pictures = PooledCache(cache, model.image, how.views, augment, how.seed)
            size = max(1, 16 // how.views)
            pictures.fill(all_pictures(sets), quiet=bar, batch_size=size, workers=config.workers)
            processes.wait()
        if not sets:
            break
        feed = PairFeed(sets, how, model.preprocess, pictures=pictures, augment=augment, **where)
        if texts is not None:
            texts.fill(feed.all_texts(), processes, quiet=bar)
        feeds.append(feed)
    return feeds[0], feeds[1] if len(feeds) > 1 else None


class ContrastiveStepper:
    """One optimiser step: vectors of all pairs, the loss, gradients summed, clipped, applied.

    Args:
        model: The model, on the device of this process.
        feed: For what is kept of locked encoders.
        config: Chunk, same names, clipping, bounds of the factor.
        processes: Those that share the step.
        optimizer: Of the parameters.
        parameters: What is trained, by name.
    """

    def __init__(
        self,
        model: DualEncoder,
        feed: PairFeed,
        config: ContrastiveConfig,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.model, self.feed, self.config = model, feed, config
        self.processes, self.optimizer, self.parameters = processes, optimizer, parameters
        self.group = dist.group.WORLD if processes.count > 1 else None

    def take(self, step: int, drawn: Sequence[Pair], *, stop: bool = False) -> StepResult:
        """Takes one step; all processes take it together.

        Args:
            step: Its number, counted from 0.
            drawn: This process's pairs.
            stop: Whether this process has been asked to stop.

        Raises:
            TrainingError: If the loss or the gradient is not finite, or a process has no pair that
                can be used. Nothing has been changed then.
        """
        usable = [p for p in drawn if not p.why_not]
        broken = [(str(p), p.why_not) for p in drawn if p.why_not]
        told = self.processes.gather((len(usable), broken, stop, self._numbers(usable)))
        broken = [b for _, own, _, _ in told for b in own]
        if not all(count for count, *_ in told):
            listed = "; ".join(f"{name}: {why}" for name, why in broken[:5])
            raise TrainingError(f"no pair of step {step + 1} can be used: {listed}")
        names = self._names([number for *_, own in told for number in own], told)
        # Dropout depends on the step alone, so that a run that goes on draws what it would have
        seed = (self.config.seed * 1_000_003 + step) * self.processes.count + self.processes.rank
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(self.processes.sum([float(self._backward(usable, names))])[0])
        if not math.isfinite(loss):
            self._refuse(step, "loss", loss, usable)
        norm = self._update(step, usable)
        count = sum(count for count, *_ in told)
        stops = any(asked for _, _, asked, _ in told)
        return StepResult(loss, {"pairs": loss}, norm, count, count, broken, stop=stops)

    def _numbers(self, pairs: Sequence[Pair]) -> list[tuple[int, int]]:
        if self.config.same_name == "negative":
            return []
        return [(number_of(p.first), number_of(p.name)) for p in pairs]

    def _names(self, numbers: list[tuple[int, int]], told: Sequence[Any]) -> Tensor | None:
        """Numbers (B,) of this process's pairs, the same for pairs that show the same thing."""
        if self.config.same_name == "negative":
            return None
        found = same_things(numbers)
        first = sum(count for count, *_ in told[: self.processes.rank])
        own = found[first : first + told[self.processes.rank][0]]
        return torch.tensor(own, device=self.processes.device)

    def _backward(self, pairs: Sequence[Pair], names: Tensor | None) -> Tensor:
        """Gradients of this process, and its share of the loss."""

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            how: dict[str, Any] = {"names": names, "group": self.group}
            how["same_name"] = self.config.same_name
            factor = self.model.logit_scale.exp()
            if self.model.logit_bias is None:
                return clip_loss(images, texts, factor, **how)
            return siglip_loss(images, texts, factor, self.model.logit_bias, **how)

        size = self.config.chunk or len(pairs)
        chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        encode = encoders(self.model, self.feed)
        half = torch.autocast(
            self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
        with half:
            if len(chunks) > 1:
                return cached_backward(loss, (encode[0], chunks), (encode[1], chunks))
            value = loss(encode[0](pairs), encode[1](pairs))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _update(self, step: int, pairs: Sequence[Pair]) -> float:
        """Sums, clips and applies the gradients; returns their norm before clipping."""
        self.processes.sum_gradients(self.parameters.values())
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = norm_of(gradients, self.processes)
        if not math.isfinite(norm):
            self._refuse(step, "norm of the gradient", norm, pairs)
        factor = min(1.0, self.config.clip / (norm + 1e-6))
        if factor != 1.0:
            for gradient in gradients:
                gradient.mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, self.config)
        self.optimizer.step()
        bounds = math.log(self.config.least_scale), math.log(self.config.most_scale)
        with torch.no_grad():
            self.model.logit_scale.clamp_(*bounds)
        return norm

    def _refuse(self, step: int, what: str, value: float, pairs: Sequence[Pair]) -> None:
        names = [n for own in self.processes.gather([str(p) for p in pairs[:5]]) for n in own]
        raise TrainingError(
            f"the {what} of step {step + 1} is {value}; the last saved state is intact. Lower "
            f"train.lr, or look at the step's pairs: {', '.join(names[:5])}, ..."
        )

    def entry(self, result: StepResult) -> dict[str, Any]:
        """A step as the log has it."""
        bias = self.model.logit_bias
        return {
            "loss": round(result.loss, 6),
            "norm": round(result.norm, 4),
            "lr": max(g["lr"] for g in self.optimizer.param_groups),
            "samples": result.samples,
            "scale": round(float(self.model.logit_scale.detach().exp()), 4),
            **({} if bias is None else {"bias": round(float(bias.detach()), 4)}),
        }


def encoders(
    model: DualEncoder, feed: PairFeed
) -> tuple[Callable[[Sequence[Pair]], Tensor], Callable[[Sequence[Pair]], Tensor]]:
    """From pairs to vectors (B, D) of length 1: of their pictures, and of their texts."""

    def images(pairs: Sequence[Pair]) -> Tensor:
        found = feed.images(pairs).to(model.device)
        if feed.pictures is None:
            return model.encode_images(found)
        assert isinstance(model.image, JoinedImageTower)
        return F.normalize(model.image.head(found), dim=-1)

    def texts(pairs: Sequence[Pair]) -> Tensor:
        return encode_texts(model, feed, [p.text for p in pairs])

    return images, texts


def encode_texts(model: DualEncoder, feed: PairFeed, texts: Sequence[str]) -> Tensor:
    """Vectors (K, D) of length 1 of texts, from kept vectors where there are any."""
    if feed.texts is None:
        return model.encode_texts(texts)
    assert isinstance(model.text, JoinedTextTower)
    return F.normalize(model.text.head(feed.texts.get(texts).to(model.device)), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    model: DualEncoder, feed: PairFeed, processes: Processes
) -> dict[str, float]:
    """The share of each data set's pictures that are given one of their own names.

    Classes are the records' first names; each class's vector is the mean over its texts, as in
    `ZeroShotClassifier`. A picture that cannot be read counts as not found.

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
        for start in range(0, len(own), PICTURES_AT_ONCE):
            drawn = [feed.pair(number, i, (0, 0, 0, 0)) for i in own[start:][:PICTURES_AT_ONCE]]
            usable = [p for p in map(feed.opened, drawn) if not p.why_not]
            if usable:
                best = (images(usable).float() @ weights.T).argmax(dim=1).tolist()
                for pair, k in zip(usable, best, strict=True):
                    right += classes[k] in names_of(data.records[pair.index])
        shares[data.name] = float(processes.sum([right])[0]) / len(data.records)
    return shares
