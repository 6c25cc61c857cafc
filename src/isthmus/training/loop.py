"""The training loop: small enough to read, exact enough to resume.

Which records step s draws depends on the seed and on s alone, so a run that was stopped goes on
with the same losses as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from isthmus.checkpoint import load_strip, locate, save
from isthmus.config import RunConfig, TrainConfig
from isthmus.config_file import to_mapping
from isthmus.data.features import FeatureCache
from isthmus.data.records import Record, read_records, with_questions
from isthmus.errors import ConfigError, TrainingError
from isthmus.model import VisionLanguageModel, compose
from isthmus.training.objectives import OBJECTIVES, name_concepts
from isthmus.training.optim import learning_rate_factor, optimizer_for
from isthmus.training.state import load_state, save_state

LOG = "log.jsonl"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class DataSet:
    """Records and their share of the draws."""

    records: Sequence[Record]
    weight: float = 1.0


def draw(data: Sequence[DataSet], size: int, seed: int, step: int) -> list[Record]:
    """The records of one step, decided by the seed and the step alone.

    Args:
        data: Data sets; each draw picks one by weight, then a record of it at random.
        size: Number of records.
        seed: The run's seed.
        step: The step, counted from 0.
    """
    generator = np.random.default_rng([seed, step])
    weights = np.array([d.weight for d in data], dtype=np.float64)
    chosen = generator.choice(len(data), size=size, p=weights / weights.sum())
    return [data[i].records[generator.integers(len(data[i].records))] for i in chosen]


def _autocast(device: torch.device, config: TrainConfig) -> AbstractContextManager[object]:
    """Half precision for activations; trained parameters stay fp32."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[config.precision])


def freeze_in_half(model: VisionLanguageModel, config: TrainConfig) -> None:
    """Puts the frozen language model into the run's precision; what is trained stays fp32."""
    dtype = DTYPES[config.precision]
    if model.device.type == "cpu" and dtype != torch.float32:
        # the CPU's fused attention in half precision is slower than its parts at these lengths
        model.language.model.set_attn_implementation("eager")
    for parameter in model.language.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _check(data: Sequence[DataSet], config: TrainConfig) -> None:
    """Refuses counts and shares with which no step could be made."""
    for key in ("steps", "batch_size", "log_every", "save_every"):
        if (value := getattr(config, key)) < 1:
            raise ConfigError(f"train.{key} is {value}: expected at least 1")
    weights = [d.weight for d in data]
    if data and not (all(0 <= w < np.inf for w in weights) and sum(weights) > 0):
        raise ConfigError(f"data.weight is {weights}: expected none below 0 and one above it")


def train(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    out: str | Path,
    *,
    cache: str | Path | None = None,
    quiet: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> VisionLanguageModel:
    """Trains the strip of a model, and saves it.

    A run that finds its own state in `out` goes on from there.

    Args:
        model: The model; its frozen parts are not changed, only put into the run's precision.
        data: Data sets with their shares.
        config: Objective, steps, learning rate, seed, precision, ...
        out: Folder for the model, `state.safetensors` and `log.jsonl`.
        cache: Folder of the feature cache; None is `out`/features.
        quiet: No progress bar.
        on_step: Called with the number of steps done and the loss.

    Returns:
        The model.

    Raises:
        ConfigError: If a number of steps or a data set's weight is out of range.
        TrainingError: If there is nothing to train, the loss is not finite, or `out` holds
            another run. The last saved state is intact.
    """
    folder = Path(out)
    _check(data, config)
    if config.objective == "concepts" and config.init is None:
        name_concepts(model, (r.answer for d in data for r in d.records))
    for name, parameter in model.named_parameters():
        if config.freeze and name.startswith(config.freeze):
            parameter.requires_grad_(False)
    parameters = model.trained_parameters()
    if not parameters or not data:
        raise TrainingError("nothing to train: no trainable parameter, or no data set")
    torch.manual_seed(config.seed)
    features = FeatureCache(cache or folder / "features", model.vision)
    pictures = {r.picture for d in data for r in d.records if not r.is_features}
    features.fill(sorted(pictures), quiet=quiet)
    freeze_in_half(model, config)
    if config.gradient_checkpointing:
        model.language.checkpoint_activations()
    model.train()
    optimizer = optimizer_for(parameters, config)
    described = json.dumps({"model": to_mapping(model.config), **to_mapping(config)}, default=str)
    done = load_state(folder, parameters, optimizer, described)
    folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(step: int) -> None:
        save(model, folder, extra={"train": {**to_mapping(config), "steps_done": step}})
        save_state(folder, step, parameters, optimizer, described)

    objective = OBJECTIVES[config.objective]
    started = time.monotonic()
    with (folder / LOG).open("a", encoding="utf-8") as log, _bar(quiet) as bar:
        task = bar.add_task("Training", total=config.steps, completed=done, loss="-", rate="-")
        for step in range(done, config.steps):
            records = draw(data, config.batch_size, config.seed, step)
            inputs = features.get([r.picture for r in records])
            with _autocast(model.device, config):
                loss = objective(model, records, inputs)
            value = float(loss.detach())
            if not np.isfinite(value):
                named = ", ".join(str(r.picture) for r in records[:3])
                raise TrainingError(
                    f"the loss of step {step} is {value}; the last good state is in {folder}. "
                    f"Lower train.lr, or look at the records: {named}, ..."
                )
            norm = _update(loss, parameters, optimizer, config, step)
            rate = (step + 1 - done) * config.batch_size / (time.monotonic() - started)
            bar.update(task, advance=1, loss=f"{value:.3f}", rate=f"{rate:.0f}")
            if on_step is not None:
                on_step(step + 1, value)
            last = step + 1 == config.steps
            if last or (step + 1) % config.log_every == 0:
                entry = {"step": step + 1, "loss": round(value, 5), "norm": round(norm, 4)}
                log.write(json.dumps({**entry, "samples_per_second": round(rate, 1)}) + "\n")
                log.flush()
            if last or (step + 1) % config.save_every == 0:
                checkpoint(step + 1)
    model.eval()
    return model


def _update(
    loss: Tensor,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
) -> float:
    """One optimiser step; returns the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * learning_rate_factor(step, config)
    optimizer.step()
    return float(norm)


def _bar(quiet: bool) -> Progress:
    """A progress bar with loss, rate and time left, on stderr."""
    from rich.console import Console

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]} samples/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )


def run(config: RunConfig, data_root: str | Path, out: str | Path, quiet: bool = False) -> Path:
    """Does what a configuration file says.

    Args:
        config: The run.
        data_root: Folder that the data sets' paths and their pictures' are relative to.
        out: The run's folder.
        quiet: No progress bar.

    Returns:
        The folder of the trained model.
    """
    root = Path(data_root)
    data = [
        DataSet(with_questions(read_records(root / d.path, root), d.questions), d.weight)
        for d in config.data
    ]
    torch.manual_seed(config.train.seed)  # the strip's first values are part of the run
    m = config.model
    model = compose(m.vision, m.language, m.connector, m.fusion, template=m.template)
    if config.train.init is not None:
        load_strip(model, locate(config.train.init), part="connector.")
    cache = root / "features"
    train(model, data, config.train, out, cache=cache, quiet=quiet)
    return Path(out)
