"""A run's state on disk: enough to go on as if it had never stopped.

`state.safetensors` holds the trained parameters and the optimiser's moments in full precision,
and the step in its metadata. Which records a step draws depends on the seed and the step alone,
so there is nothing else to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus.checkpoint import write_atomically
from isthmus.errors import TrainingError

STATE = "state.safetensors"
MAY_CHANGE = {"steps", "save_every", "log_every"}
"""What a run may go on with another value of: a longer run is a continuation of a shorter one."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: str,
) -> None:
    """Writes the state of a run after `step` steps, atomically.

    Args:
        folder: The run's folder.
        step: Steps done.
        parameters: Trained parameters by name.
        optimizer: Its moments are written beside the parameters.
        config: The run's configuration as text; resuming with another is refused.

    Raises:
        CheckpointError: If it cannot be written; the last good state is untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key in _MOMENTS:
            if key in optimizer.state[parameter]:
                tensors[f"{key}.{name}"] = optimizer.state[parameter][key].contiguous()
    metadata = {"step": str(step), "config": config}
    write_atomically(folder / STATE, lambda path: save_file(tensors, path, metadata))


def load_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: str,
) -> int:
    """Reads the state of a run, if there is one.

    Returns:
        The steps already done; 0 for a fresh run.

    Raises:
        TrainingError: If the state is damaged, or was written by another configuration.
    """
    path = folder / STATE
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            _refuse_other(folder, json.loads(metadata["config"]), json.loads(config))
            names = set(file.keys())
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(file.get_tensor(f"parameter.{name}"))
                    optimizer.state[parameter] = {
                        key: file.get_tensor(f"{key}.{name}").to(
                            "cpu" if key == "step" else parameter.device
                        )
                        for key in _MOMENTS
                        if f"{key}.{name}" in names
                    }
            return int(metadata["step"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{path} cannot be read ({error}): choose another --out, or remove it to start anew"
        ) from error


def _refuse_other(folder: Path, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises if a run would go on under another configuration."""
    keys = (saved.keys() | own.keys()) - MAY_CHANGE
    changed = ", ".join(k for k in sorted(keys) if saved.get(k) != own.get(k))
    if not changed:
        return
    raise TrainingError(
        f"{folder} holds a run that differs in: {changed}. Choose another --out, go on with the "
        "configuration it was started with, or remove the folder to start anew"
    )
