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

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.joined import JoinedImageTower, JoinedTextTower
from isthmus.align.saved import description_of, save_clip
from isthmus.checkpoint import DESCRIPTION, WEIGHTS
from isthmus.config_file import to_mapping
from isthmus.data.records import Record
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, TrainingStopped
from isthmus.training.contrastive_config import ContrastiveConfig
from isthmus.training.contrastive_data import PairFeed, PairSet, all_pictures
from isthmus.training.contrastive_features import Augment, PooledCache, TextCache
from isthmus.training.contrastive_step import ContrastiveStepper, zero_shot_accuracy
from isthmus.training.feed import augmented
from isthmus.training.log import RunLog
from isthmus.training.loop import Broken, asked_to_stop
from isthmus.training.optim import contrastive_optimizer
from isthmus.training.processes import Processes
from isthmus.training.progress import ProgressBar
from isthmus.training.state import (
    BEST,
    Progress,
    load_buffers,
    load_state,
    state_tensors,
    write_checkpoint,
)


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
    data = checked_sets(pairs)
    description = description_of(model)  # refuses now what could not be saved later
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    processes = Processes(model.device)
    model.to(processes.device)
    feed, held_out = _feeds(
        model, data, evaluation, config, cache or folder / "features", augment, processes, quiet
    )
    optimizer = contrastive_optimizer(parameters, config)
    described = json.dumps({"model": description, **to_mapping(config)}, default=str)
    state = load_state(folder, parameters, optimizer, described)
    buffers = {n: b for n, b in model.named_buffers() if not n.startswith(locked_parts(model))}
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
            write = partial(save_clip, model, extra=extra)
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
                save_clip(model, folder / BEST, extra={"evaluation": shares, "step": step})
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
                rate = {"samples_per_second": bar.rates()["samples_per_second"]}
                log.write({"step": step, **stepper.entry(result), **rate})
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


def locked_parts(model: DualEncoder) -> tuple[str, ...]:
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
    locked = locked_parts(model) if config.feature_cache else ()
    bar = quiet or not processes.is_main
    plain = replace(config, views=1)
    texts = TextCache(cache, model) if "text.encoder." in locked else None
    where: dict[str, Any] = {"rank": processes.rank, "processes": processes.count, "texts": texts}
    feeds = []
    for sets, how in ((data, config), (evaluation, plain))[: 2 if evaluation else 1]:
        pictures = None
        if "image.encoder." in locked and how.views:
            assert isinstance(model.image, JoinedImageTower)
            pictures = PooledCache(cache, model.image, how.views, augment, how.seed)
            size = max(1, 16 // how.views)
            pictures.fill(all_pictures(sets), quiet=bar, batch_size=size, workers=config.workers)
            processes.wait()
        feed = PairFeed(sets, how, model.preprocess, pictures=pictures, augment=augment, **where)
        if texts is not None:
            texts.fill(feed.all_texts(), processes, quiet=bar)
        feeds.append(feed)
    return feeds[0], feeds[1] if len(feeds) > 1 else None
