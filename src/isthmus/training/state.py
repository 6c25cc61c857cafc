"""A run on disk: checkpoints that are there in whole or not at all.

    out/step-000500/   model.safetensors, isthmus.json   the model
                       state.safetensors                 what else it takes to go on exactly
    out/               model.safetensors, isthmus.json   the newest model, for `isthmus.load`
    out/best/          likewise, the best by held-out loss

`state.safetensors` holds the trained parameters and the optimiser's moments in full precision, and
the step in its metadata. Which samples a step draws depends on the seed and the step alone, so
there is nothing else to keep. A checkpoint is written into a folder of another name, synced and
renamed; killed at any moment, a run finds the one before.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus.errors import CheckpointError, TrainingError
from isthmus.files import sync, write_atomically
from isthmus.training.processes import assign, whole

STATE = "state.safetensors"
BEST = "best"
MAY_CHANGE = {
    "steps",
    "save_every",
    "log_every",
    "evaluate_every",
    "samples",
    "keep",
    "workers",
    "micro_batch_size",
    "sharding",
    "gradient_checkpointing",
    "broken_share",
    "feature_cache",
    "contrastive.chunk",
}
"""What a run may go on with another value of: none of them changes which samples are drawn."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Reached:
    """How far a run has come.

    Attributes:
        step: Steps done.
        best: Lowest held-out loss so far.
        scale, good_steps: The loss scale of fp16.
    """

    step: int = 0
    best: float = float("inf")
    scale: float = 1.0
    good_steps: int = 0


def state_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Parameters and moments in whole, on the CPU; all processes must call it together."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = whole(parameter.detach()).cpu()
        for key in _MOMENTS:
            if key in optimizer.state[parameter]:
                tensors[f"{key}.{name}"] = whole(optimizer.state[parameter][key]).cpu()
    return tensors


def write_checkpoint(
    folder: Path,
    progress: Reached,
    tensors: Mapping[str, Tensor],
    write: Callable[[Path], object],
    files: Sequence[str],
    config: str,
    keep: int,
) -> None:
    """Writes a checkpoint, makes its model the run's, and removes the oldest.

    Args:
        folder: The run's folder.
        progress: How far it has come.
        tensors: As `state_tensors` gives them.
        write: Writes the model into a folder.
        files: What it writes there, the one last that makes the model whole.
        config: The run's configuration as text; resuming with another is refused.
        keep: How many checkpoints stay.

    Raises:
        CheckpointError: If it cannot be written; the checkpoint before is untouched.
    """
    final = folder / f"step-{progress.step:06d}"
    partial = folder / f".{final.name}.partial"
    metadata = {"progress": json.dumps(vars(progress)), "config": config}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        contiguous = {n: t.contiguous() for n, t in tensors.items()}
        write_atomically(partial / STATE, lambda path: save_file(contiguous, path, metadata))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
        publish(final, folder, files)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {final}: {error}; the checkpoint before is untouched"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def publish(checkpoint: Path, target: Path, files: Sequence[str]) -> None:
    """Makes a checkpoint's model the one of another folder."""
    for name in files:
        write_atomically(target / name, bound(shutil.copyfile, checkpoint / name))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    found = [p for p in folder.glob("step-*") if _STEP.fullmatch(p.name) and (p / STATE).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def load_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: str,
) -> Reached:
    """Reads the newest state of a run, if there is one.

    Returns:
        How far it had come; `Reached()` for a fresh run.

    Raises:
        TrainingError: If the state is damaged, or was written by another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return Reached()
    path = found[-1] / STATE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            _refuse_other(folder, json.loads(metadata["config"]), json.loads(config))
            names = set(file.keys())
            for name, parameter in parameters.items():
                assign(parameter, file.get_tensor(f"parameter.{name}"))
                optimizer.state[parameter] = {
                    key: _moment(parameter, key, file.get_tensor(f"{key}.{name}"))
                    for key in _MOMENTS
                    if f"{key}.{name}" in names
                }
            return Reached(**json.loads(metadata["progress"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"{path} cannot be read ({error}): remove its folder to resume from the checkpoint "
            "before, or choose another --out"
        ) from error


def load_buffers(folder: Path, buffers: Mapping[str, Tensor]) -> None:
    """Reads what the newest state of a run has as `buffer.NAME`, if there is one.

    Raises:
        TrainingError: If the state is damaged.
    """
    for path in checkpoints(folder)[-1:]:
        try:
            with safe_open(path / STATE, framework="pt") as file:
                for name, buffer in buffers.items():
                    buffer.copy_(file.get_tensor(f"buffer.{name}"))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise TrainingError(f"{path / STATE} cannot be read ({error})") from error


def _moment(parameter: nn.Parameter, key: str, value: Tensor) -> Tensor:
    """A moment where the optimiser keeps it: beside its parameter, its step on the CPU."""
    if key == "step":
        return value
    moment = torch.zeros_like(parameter)
    assign(moment, value)
    return moment


def _refuse_other(folder: Path, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises if a run would go on under another configuration."""
    keys = (saved.keys() | own.keys()) - MAY_CHANGE
    changed = ", ".join(k for k in sorted(keys) if saved.get(k) != own.get(k))
    if not changed:
        return
    raise TrainingError(
        f"{folder} holds a run that differs in: {changed}. Choose another --out, resume with the "
        "configuration it was started with, or remove the folder to start again"
    )
