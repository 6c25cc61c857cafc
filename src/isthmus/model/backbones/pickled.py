"""Files that `torch.save` wrote: tensors by name, and no code."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import CheckpointError

WRAPPED = "model_state_dict"
"""Where a checkpoint of a training run has its weights."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors by name, mapped from the file and not copied.

    A pickle can run code when it is read. This reads tensors and plain containers alone, whatever
    the file holds. Of a training run's checkpoint it gives the weights, and it takes off the
    "module." that distributed training puts before names.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is cut short, holds anything that would run, or no tensors by name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.pt"
        >>> torch.save({"module.weight": torch.ones(2)}, path)
        >>> read_pickled(path)
        {'weight': tensor([1., 1.])}
    """
    whole = zipfile.is_zipfile(path)  # what torch wrote before version 1.6 is no archive
    try:
        with path.open("rb") as file:
            cut = file.read(2) == b"PK" and not whole
        if cut:
            raise EOFError("the end of the archive is missing")
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise CheckpointError(
                f"{path} cannot be read: it was not written by torch.save"
            ) from error
        raise CheckpointError(
            f"{path} would run {code[1]} when it is read: expected only tensors, and none of it "
            "was run; take the file from where it was published"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read: {reason}; it may be cut short: fetch it again"
        ) from error
    if isinstance(found, dict):
        found = found.get(WRAPPED, found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds no tensors by name: expected a model's weights")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
