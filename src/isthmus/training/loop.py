"""The training loop: small enough to read, exact enough to resume.

Which samples step s draws depends on the seed and on s alone, and a step is the same sum whatever
it is split into: over forward passes, or over processes. `train` takes whatever `Trainee` there is
for a model; `run_steps` does the rest for all of them.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from isthmus.config.file import to_mapping
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.errors import ConfigError, TrainingError, TrainingStopped
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.reports.progress import Progress, Rates
from isthmus.training.clip import dual_encoder_trainee
from isthmus.training.feed import DataSet
from isthmus.training.loader import Augment, augmented
from isthmus.training.log import RunLog
from isthmus.training.pairs import PairSet
from isthmus.training.precision import choice, decided
from isthmus.training.processes import Processes
from isthmus.training.report import write_report
from isthmus.training.state import (
    BEST,
    Reached,
    load_buffers,
    load_state,
    state_tensors,
    write_checkpoint,
)
from isthmus.training.step import FP16_SCALE, LossScale, Stepper, StepResult
from isthmus.training.trainee import S, Trainee
from isthmus.training.vlm import vision_language_trainee

M = TypeVar("M", bound=VisionLanguageModel | DualEncoder)


def train(
    model: M,
    data: str | Path | Sequence[Record] | Sequence[DataSet] | Sequence[PairSet],
    config: TrainConfig,
    out: str | Path,
    *,
    evaluation: Sequence[DataSet] | Sequence[PairSet] = (),
    cache: str | Path | None = None,
    augment: Augment = augmented,
    quiet: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> M:
    """Trains the strip of a vision-language model, or a dual encoder, and saves it.

    A run that finds its own state in `out` resumes from there, with the losses that it would have
    had. Started by `torchrun` or `accelerate launch`, all processes share the work of each step.

    Args:
        model: The model. Its frozen parts are not changed, only put into the run's precision.
        data: A folder, a file or shards; records; or data sets with their shares: `DataSet` for a
            vision-language model, `PairSet` for a dual encoder.
        config: Steps, batch size, learning rate, seed, precision, ...
        out: Folder of the run: the newest model, checkpoints, `best`, `log.jsonl`, `report.html`.
        evaluation: Data sets that `config.evaluate_every` looks at; never trained on. For a dual
            encoder, the share of their images whose name is found among all names of the set.
        cache: Folder of the feature cache; None is `out`/features.
        augment: What makes a new view of an image; by default a random crop, mirrored or not.
        quiet: No progress.
        on_step: Called with the number of steps done and the loss.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: If a number is out of range, the data has nothing in it, or the configuration
            asks for what this kind of model does not do.
        PromptError: If a template has no `{}`, or a text is longer than the text tower reads.
        TrainingError: If there is nothing to train, the loss is not finite, too many images are
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
    refuse_whole(model, "training")
    folder = Path(out)
    processes = Processes(model.device)
    hush = quiet or not processes.is_main
    if not hush:
        print(choice(config, processes.device), file=sys.stderr, flush=True)
    config = decided(config, processes.device)
    _freeze(model, config.freeze)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError("nothing to train: no parameter is trainable")
    place = Path(cache or folder / "features")
    given: Any = (data, evaluation, config, processes, place, augment, hush)
    if isinstance(model, DualEncoder):
        run_steps(dual_encoder_trainee(model, *given), folder, quiet=hush, on_step=on_step)
    else:
        run_steps(vision_language_trainee(model, *given), folder, quiet=hush, on_step=on_step)
    return model


def run_steps(
    trainee: Trainee[S],
    folder: Path,
    *,
    quiet: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Trains whatever it is, from its last saved state on.

    Args:
        trainee: What is trained.
        folder: The run's folder.
        quiet: No progress.
        on_step: Called with the number of steps done and the loss.

    Raises:
        TrainingError, TrainingStopped, CheckpointError: As `train` does.
    """
    model, config, processes = trainee.model, trainee.config, trainee.processes
    told = to_mapping(config)
    described = json.dumps({**trainee.identity, **_flat(told)}, default=str)
    state = load_state(folder, trainee.parameters, trainee.optimizer, described)
    load_buffers(folder, trainee.buffers)
    if state.step == 0 and config.precision == "fp16":
        state = replace(state, scale=FP16_SCALE)
    scale = LossScale(state.scale, state.good_steps)
    stepper = Stepper(trainee, scale)
    log = RunLog(folder, step=state.step) if processes.is_main else None
    broken, best, rates = Broken(config.broken_share), state.best, Rates()
    progress = Progress("Training", config.steps, done=state.step, unit="samples", quiet=quiet)

    def save(step: int) -> None:
        """All processes gather, the first writes."""
        tensors = state_tensors(trainee.parameters, trainee.optimizer)
        tensors |= {f"buffer.{n}": b.detach().cpu() for n, b in trainee.buffers.items()}
        write = trainee.writer({"train": {**told, "steps_done": step}})
        if processes.is_main:
            reached = Reached(step, best, scale.value, scale.good_steps)
            write_checkpoint(folder, reached, tensors, write, trainee.files, described, config.keep)
        processes.wait()

    def evaluate(step: int) -> float:
        """The error on what was kept aside; the best model is kept."""
        model.eval()
        found = trainee.evaluate(folder)
        write = trainee.writer({"evaluation": found.figures, "step": step})
        if log is not None:
            log.write({"step": step, "evaluation": found.figures, "held_out_loss": found.error})
            if found.answers:
                log.write({"step": step, "answers": found.answers})
            if found.error < best:
                write(folder / BEST)
        processes.wait()
        model.train()
        return min(best, found.error)

    logging = nullcontext() if log is None else closing(log)
    with training_mode(model), asked_to_stop() as asked, progress, logging:
        steps = trainee.steps(state.step, config.steps)
        for step, drawn in enumerate(steps, start=state.step + 1):
            result = stepper.take(step - 1, drawn, stop=asked.is_set())
            last = step == config.steps
            rates.add(samples=result.samples, tokens=result.tokens)
            progress.advance(amount=result.samples, loss=f"{result.loss:.3f}")
            if log is not None and result.broken:
                named = [{"image": p, "why": w} for p, w in result.broken]
                log.write({"step": step, "broken": named})
            if last or step % config.log_every == 0:
                entry = {**result.entry(trainee.optimizer), **trainee.entry()}
                for kind in ("samples", "tokens"):
                    if kind in entry:
                        entry[f"{kind}_per_second"] = round(rates.per_second(kind), 1)
                if log is not None:
                    log.write({"step": step, **entry})
            broken.add(result)
            if on_step is not None:
                on_step(step, result.loss)
            due = config.evaluate_every and (last or step % config.evaluate_every == 0)
            if trainee.evaluates and due:
                best = evaluate(step)
            if last or result.stop or step % config.save_every == 0:
                save(step)
            if result.stop and not last:
                raise TrainingStopped(
                    f"stopped after step {step} of {config.steps}, as asked; the same command "
                    "resumes from here"
                )
    if processes.is_main:
        write_report(folder, trainee.files[-1])


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
def training_mode(model: nn.Module) -> Iterator[None]:
    """A model in training mode while the context lasts, and in evaluation mode after it."""
    model.train()
    try:
        yield
    finally:
        model.eval()


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


def _freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Freezes the parameters whose names begin so; each beginning is of one at least."""
    names = [name for name, _ in model.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            trained = sorted({name.rpartition(".")[0] for name in names if "layers." not in name})
            raise ConfigError(
                f"train.freeze: no parameter begins with {beginning!r}; there are "
                f"{', '.join(trained[:20])}, ..."
            )
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(beginnings)):
            parameter.requires_grad_(False)


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Tables within tables under the names that `--set` has for them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{start}{key}.") if isinstance(value, dict) else {start + key: value}
    return flat
