"""Zero-shot weights: one vector for each label, computed in one go and kept on disk.

Letters: K labels, P prompts of all labels, D width of the common space.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from isthmus.assets import registry as assets
from isthmus.errors import CheckpointError
from isthmus.files import write_atomically
from isthmus.model.clip.dual_encoder import DualEncoder

FORMAT = 1
"""Raised when weights are computed in another way, so that old files are left alone."""


@torch.no_grad()
def zero_shot_weights(
    model: DualEncoder, prompts: Sequence[Sequence[str]], *, trim: bool = True
) -> Tensor:
    """Vectors (K, D) of length 1: of each label, the mean of its prompts' vectors.

    Every prompt's vector has length 1 before the mean is taken, and so has the mean after
    (Radford et al. 2021, section 3.1.4). All prompts of all labels go through the text tower
    together, sorted by length; with a causal tower none is padded beyond the longest beside it.

    Args:
        model: The dual encoder.
        prompts: The prompts of each label.
        trim: Whether padding is left out where that changes no vector.

    Returns:
        float32, on the CPU.

    Raises:
        PromptError: If a prompt is longer than the text tower's context.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> zero_shot_weights(model, [["a cat", "cats"], ["a dog"]]).shape
        torch.Size([2, 8])
    """
    rows = model.rows([prompt for many in prompts for prompt in many])
    owner = torch.tensor([k for k, many in enumerate(prompts) for _ in many])
    sums: Tensor | None = None
    for places, vectors in model.passes(rows, trim=trim):
        vectors = vectors.float().cpu()
        if sums is None:
            sums = torch.zeros(len(prompts), vectors.shape[1])
        sums.index_add_(0, owner[places], vectors)
    assert sums is not None  # there is at least one prompt, or `rows` would have refused
    counts = owner.bincount(minlength=len(prompts))
    return F.normalize(sums / counts[:, None], dim=-1)


def cached_weights(
    model: DualEncoder, prompts: Sequence[Sequence[str]], folder: str | Path | None = None
) -> Tensor:
    """As `zero_shot_weights`, from a file if they were computed before.

    A file belongs to one text tower, every weight of it, and to the very prompts. A damaged file
    is computed again; a folder that cannot be written is done without.

    Args:
        model: The dual encoder.
        prompts: The prompts of each label.
        folder: Where files are kept; None for `classifiers` in Isthmus's cache.
    """
    place = Path(folder) if folder is not None else assets.home() / "classifiers"
    told = json.dumps([FORMAT, model.text_fingerprint(), [list(many) for many in prompts]])
    path = place / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        weights = load_file(path)["weights"]
        if len(weights) == len(prompts) and bool(weights.isfinite().all()):
            return weights
    weights = zero_shot_weights(model, prompts)
    with contextlib.suppress(OSError, CheckpointError):
        write_atomically(path, lambda p: save_file({"weights": weights}, p))
    return weights
