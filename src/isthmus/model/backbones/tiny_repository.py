"""Released models with random weights in a folder, as their repositories are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from isthmus.model.backbones.tiny import END, PAD


def random_model(
    kind: Any, config: Any, *, seed: int, never: Sequence[int], end: int | Sequence[int] = END
) -> Any:
    """A model of Transformers with random weights.

    Args:
        kind: Transformers' class of the whole model.
        config: Its configuration, over the byte vocabulary.
        seed: Seed of the weights; the global generator is left alone.
        never: Tokens that it does not say, such as that of an image.
        end: Id of the token that ends a text, or ids.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():  # norms of 1 and biases of 0 would hide mix-ups
                parameter.add_(torch.randn_like(parameter) * 0.2)
            model.get_output_embeddings().weight[list(never)] = 0  # no released model says them
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = PAD
    return model


def write_repository(
    folder: str | Path, kind: Any, config: Any, processor: Any, *, image_id: int, seed: int = 0
) -> Path:
    """Writes a model of Transformers with random weights, and its processor.

    Args:
        folder: Where to; made if missing.
        kind: Transformers' class of the whole model.
        config: Its configuration.
        processor: Its processor, or parts of one; each has `save_pretrained`.
        image_id: Id of its token for an image, which no model says.
        seed: Seed of the weights; the global generator is left alone.

    Returns:
        The folder.
    """
    model = random_model(kind, config, seed=seed, never=[image_id])
    model.save_pretrained(folder)
    for part in processor if isinstance(processor, (list, tuple)) else [processor]:
        part.save_pretrained(folder)
    return Path(folder)
