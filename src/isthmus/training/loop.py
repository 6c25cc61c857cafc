"""The training loop: small enough to read, exact enough to resume.

Which samples step s draws depends on the seed and on s alone, and a step is the same sum whatever
it is split into: over forward passes, or over processes.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus.checkpoint import (
    DESCRIPTION,
    WEIGHTS,
    description_of,
    strip_state,
    write_model,
)
from isthmus.config import TrainConfig
from isthmus.config_file import to_mapping
from isthmus.data.features import FeatureCache
from isthmus.data.records import Picture, Record, frames
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, InputError, TrainingError, TrainingStopped
from isthmus.model import VisionLanguageModel
from isthmus.training.evaluate import answers, held_out_losses
from isthmus.training.feed import DataSet, Feed, PictureSource
from isthmus.training.log import RunLog
from isthmus.training.objectives import Concepts, Language, Objective, name_concepts
from isthmus.training.optim import optimizer_for
from isthmus.training.processes import Processes, shard, whole
from isthmus.training.progress import ProgressBar
from isthmus.training.report import write_report
from isthmus.training.state import BEST, Progress, load_state, state_tensors, write_checkpoint
from isthmus.training.step import DTYPES, LossScale, Stepper, StepResult

FP16_SCALE = 2.0**16


def train(
    model: VisionLanguageModel,
    data: str | Path | Sequence[Record] | Sequence[DataSet],
    config: TrainConfig,
    out: str | Path,
    *,
    evaluation: Sequence[DataSet] = (),
    cache: str | Path | None = None,
    quiet: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> VisionLanguageModel:
    """Trains the strip of a model, and saves it.

    A run that finds its own state in `out` goes on from there, with the losses that it would have
    had. Started by `torchrun` or `accelerate launch`, all processes share the work of each step.

    Args:
        model: The model; its frozen parts are not changed, only put into the run's precision.
        data: A folder, a file or shards; records; or data sets with their shares.
        config: Objective, steps, learning rate, seed, precision, ...
        out: Folder of the run: the newest model, checkpoints and `log.jsonl`.
        evaluation: Data sets that `config.evaluate_every` looks at; never trained on.
        cache: Folder of the feature cache; None is `out`/features.
        quiet: No progress bar.
        on_step: Called with the number of steps done and the loss.

    Returns:
        The model.

    Raises:
        ConfigError: If a number is out of range, or the data has nothing in it.
        TrainingError: If there is nothing to train, the loss is not finite, too many pictures are
            broken, or `out` holds another run. The last saved state is intact.
        TrainingStopped: If the process was asked to end (SIGTERM); the state is saved.
        CheckpointError: If a checkpoint cannot be written; the one before is intact.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear())
        >>> records = [im.Record.of(None, "1 + 1?", "2")]
        >>> config = im.TrainConfig(steps=1, batch_size=1)
        >>> model = im.train(model, records, config, tempfile.mkdtemp(), quiet=True)
    """
    folder = Path(out)
    data = _data_sets(data)
    _check(data, config)
    processes = Processes(model.device)
    if config.objective == "concepts" and config.init is None:
        name_concepts(model, (d.record(i).answer for d in data for i in range(len(d.records))))
    for name, parameter in model.named_parameters():
        if config.freeze and name.startswith(config.freeze):
            parameter.requires_grad_(False)
    if not model.trained_parameters():
        raise TrainingError("nothing to train: no parameter is trainable")
    torch.manual_seed(config.seed)
    pictures, plain = _pictures(
        model, [*data, *evaluation], config, cache or folder / "features", processes, quiet
    )
    described = json.dumps({"model": to_mapping(model.config), **to_mapping(config)}, default=str)
    description = description_of(model)
    model.to(processes.device)
    freeze_in_half(model, config)
    if config.gradient_checkpointing:
        model.language.checkpoint_activations()
    sharded = config.sharding == "fsdp" and processes.count > 1
    if sharded:
        shard(model, processes)
    model.train()
    parameters = model.trained_parameters()
    optimizer = optimizer_for(parameters, config, spread=sharded)
    state = load_state(folder, parameters, optimizer, described)
    if state.step == 0 and config.precision == "fp16":
        state = replace(state, scale=FP16_SCALE)
    objective: Objective = Concepts()
    if config.objective == "language":
        objective = Language(config.pack, always_pictures=sharded)
    scale = LossScale(state.scale, state.good_steps)
    stepper = Stepper(model, data, config, objective, processes, optimizer, parameters, scale)
    feed = Feed(model, data, config, pictures, rank=processes.rank, processes=processes.count)
    log = RunLog(folder, step=state.step) if processes.is_main else None
    broken = Broken(config.broken_share)
    bar = ProgressBar(config.steps, state.step, quiet=quiet or not processes.is_main)

    def save(step: int, best: float) -> None:
        """All processes gather, the first writes."""
        tensors = state_tensors(parameters, optimizer)
        strip = {n: whole(t).cpu() for n, t in strip_state(model).items()}
        if processes.is_main:
            progress = Progress(step, best, scale.value, scale.good_steps)
            how = {"train": {**to_mapping(config), "steps_done": step}}
            write = partial(write_model, description={**description, **how}, state=strip)
            files = (WEIGHTS, DESCRIPTION)
            write_checkpoint(folder, progress, tensors, write, files, described, config.keep)
        processes.wait()

    def evaluate(step: int, best: float) -> float:
        """Held-out loss and answers; the best model is kept."""
        model.eval()
        losses = held_out_losses(model, evaluation, config, objective, plain, processes)
        model_loss = sum(losses.values()) / len(losses) if losses else float("inf")
        strip = {n: whole(t).cpu() for n, t in strip_state(model).items()}
        if log is not None:
            log.write({"step": step, "evaluation": losses, "held_out_loss": model_loss})
            if config.samples and not sharded and config.objective == "language":
                log.write(
                    {"step": step, "answers": answers(model, evaluation, config, plain, folder)}
                )
            if model_loss < best:
                write_model(folder / BEST, description, strip)
        processes.wait()
        model.train()
        return min(best, model_loss)

    best = state.best
    with asked_to_stop() as asked, bar, nullcontext() if log is None else closing(log):
        steps = feed.steps(state.step, config.steps)
        for step, items in enumerate(steps, start=state.step + 1):
            result = stepper.take(step - 1, items, stop=asked.is_set())
            last = step == config.steps
            bar.update(step, result.loss, result.samples, result.tokens)
            if log is not None and result.broken:
                named = [{"picture": p, "why": w} for p, w in result.broken]
                log.write({"step": step, "broken": named})
            if last or step % config.log_every == 0:
                entry = {**_entry(step, result, optimizer), **bar.rates(), **gates(model)}
                if log is not None:
                    log.write(entry)
            broken.add(result)
            if on_step is not None:
                on_step(step, result.loss)
            if evaluation and config.evaluate_every and (last or step % config.evaluate_every == 0):
                best = evaluate(step, best)
            if last or result.stop or step % config.save_every == 0:
                save(step, best)
            if result.stop and not last:
                raise TrainingStopped(
                    f"stopped after step {step} of {config.steps}, as asked; the same command "
                    "goes on from here"
                )
    if processes.is_main:
        write_report(folder)
    model.eval()
    return model


class Broken:
    """Counts samples that could not be used, and ends a run that has too many.

    Args:
        most: Largest share of all samples.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.samples = 0
        self.found: dict[str, str] = {}
        self.count = 0

    def add(self, result: StepResult) -> None:
        """After each step. Raises TrainingError past the limit, with the list."""
        self.samples += result.samples + len(result.broken)
        self.count += len(result.broken)
        self.found.update(result.broken)
        # One in a few says nothing yet; a run whose first samples are all broken does
        if self.count > max(self.most * self.samples, 2):
            listed = "; ".join(f"{name}: {why}" for name, why in list(self.found.items())[:10])
            raise TrainingError(
                f"{self.count} of {self.samples} samples cannot be used, more than "
                f"train.broken_share = {self.most}; `isthmus data check` lists them all. {listed}"
            )


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, while the context lasts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def freeze_in_half(model: VisionLanguageModel, config: TrainConfig) -> None:
    """Puts the frozen language model into the run's precision; what is trained stays fp32."""
    dtype = DTYPES[config.precision]
    if model.device.type == "cpu" and dtype != torch.float32:
        # the CPU's fused attention in half precision is slower than its parts at these lengths
        model.language.model.set_attn_implementation("eager")
    for parameter in model.language.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _data_sets(data: Any) -> list[DataSet]:
    """What was passed as data sets."""
    if isinstance(data, (str, Path)):
        return [DataSet(read_data(data), name=Path(str(data)).stem)]
    if data and not isinstance(data[0], DataSet):
        return [DataSet(data)]
    return list(data)


def _check(data: Sequence[DataSet], config: TrainConfig) -> None:
    """Refuses data and shares with which no step could be made."""
    weights = [d.weight for d in data]
    if data and not (all(0 <= w < np.inf for w in weights) and sum(weights) > 0):
        raise ConfigError(f"data.weight is {weights}: expected none below 0 and one above it")
    if empty := [d.name for d in data if not len(d.records)]:
        raise ConfigError(f"nothing to train on in {', '.join(empty)}: all records are held out")
    if not data:
        raise TrainingError("nothing to train on: no data set")
    if config.augment and config.objective == "concepts":
        raise ConfigError('train.augment is for train.objective = "language"')


def _pictures(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    cache: str | Path,
    processes: Processes,
    quiet: bool,
) -> tuple[PictureSource, PictureSource]:
    """Where pictures come from, for training and for evaluation; fills the cache first."""
    store = None
    if config.feature_cache:
        store = FeatureCache(cache, model.vision)
        shown = () if config.augment else _all_pictures(data)
        store.fill(shown, quiet=quiet or not processes.is_main)
    if config.augment:
        return PictureSource(model, None, config.seed), PictureSource(model, None)
    return PictureSource(model, store), PictureSource(model, store)


def _entry(step: int, result: StepResult, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A step as the log has it."""
    return {
        "step": step,
        "loss": round(result.loss, 5),
        "losses": {n: round(v, 5) for n, v in result.losses.items()},
        "norm": round(result.norm, 4),
        "lr": max(g["lr"] for g in optimizer.param_groups),
        "samples": result.samples,
        "tokens": result.tokens,
    }


def _all_pictures(data: Sequence[DataSet]) -> Iterator[Picture]:
    """Every picture of data sets; records that cannot be read are named when they are drawn."""
    for one in data:
        for index in range(len(one.records)):
            with suppress(InputError):
                for medium in one.records[index].pictures:
                    yield from frames(medium)


def gates(model: VisionLanguageModel) -> dict[str, Any]:
    """How far each gated block is open, tanh of its gates; all processes must call it together."""
    opened = {
        block: {n: round(whole(gate.detach()).tanh().item(), 5) for n, gate in own.items()}
        for block, own in model.fusion.gates().items()
    }
    return {"gates": opened} if opened else {}
