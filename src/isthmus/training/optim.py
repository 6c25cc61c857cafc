"""AdamW with groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from isthmus.config.model import TrainConfig

ENCODER_PLACES = (
    *("pos_embed", "cls_token", "reg_token", "latents", "queries", "rows", "positions", "frames"),
    *("embedding", "embeddings.weight", "embedding.weight"),
)
"""Endings of the names of what is added to tokens, in the encoders of timm, Transformers and
open_clip, which do not all say so themselves."""


def not_decayed(model: nn.Module) -> set[str]:
    """Names of parameters that their modules leave out of weight decay.

    A module says so by a method `no_weight_decay`, which returns names of its own parameters; it
    is timm's convention.

    Example:
        >>> from isthmus.model.connectors.resampler import PerceiverResampler
        >>> sorted(not_decayed(PerceiverResampler(8, 6, latents=2, heads=1, head_dim=4)))
        ['latents']
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        method = getattr(module, "no_weight_decay", None)
        if callable(method):
            found |= {f"{prefix}.{name}" if prefix else str(name) for name in method()}
    return found & {name for name, _ in model.named_parameters()}


def groups_of(
    parameters: Mapping[str, nn.Parameter],
    rate: Callable[[str], float],
    weight_decay: float,
    no_maps: Collection[str] = (),
) -> list[dict[str, object]]:
    """Groups for AdamW: matrices with weight decay, the rest without; rates by part.

    Vectors (biases, norms, gates), latents, queries and embeddings are positions and offsets, not
    maps; decay would only pull them to zero. Flamingo likewise leaves the resampler without.

    Args:
        parameters: Trained parameters by name.
        rate: The peak learning rate of a name.
        weight_decay: Of matrices.
        no_maps: Names of matrices that are no maps; see `not_decayed`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        plain = parameter.ndim < 2 or name in no_maps
        groups.setdefault((rate(name), 0.0 if plain else weight_decay), []).append(parameter)
    return [
        {"params": members, "lr": lr, "peak": lr, "weight_decay": decay}
        for (lr, decay), members in groups.items()
    ]


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig, no_maps: Collection[str] = ()
) -> list[dict[str, object]]:
    """The groups of a vision-language model: connector and adapters may have rates of their own.

    Args:
        parameters: Trained parameters by name.
        config: Learning rates and weight decay.
        no_maps: Names of matrices that are no maps; see `not_decayed`.
    """

    def rate(name: str) -> float:
        if "lora_" in name and config.lr_lora is not None:
            return config.lr_lora
        if name.startswith("connector.") and config.lr_connector is not None:
            return config.lr_connector
        return config.lr

    return groups_of(parameters, rate, config.weight_decay, no_maps)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Linear warm-up to 1, then a cosine or a line down to `final_lr` at the last step, or 1.

    Example:
        >>> config = TrainConfig(steps=100, warmup=10, final_lr=0.1)
        >>> [round(learning_rate_factor(s, config), 2) for s in (0, 9, 99)]
        [0.1, 1.0, 0.1]
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    span = max(1, config.steps - 1 - config.warmup)
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup) / span)
    if config.schedule == "linear":
        return 1 - (1 - config.final_lr) * done
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_for(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    config: TrainConfig,
    *,
    spread: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the groups, betas (0.9, 0.95) as is usual for transformers.

    Args:
        model: The model; its modules say what has no weight decay.
        parameters: Trained parameters by name.
        config: Learning rates and weight decay.
        spread: Whether some parameters are spread over processes, which rules out fused updates.
    """
    groups = parameter_groups(parameters, config, not_decayed(model))
    if spread:
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def contrastive_optimizer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW for dual encoders, betas (0.9, 0.98) and epsilon 1e-6 as in CLIP (table 20).

    Matrices have weight decay; temperature, bias, gains, vectors of classes and what is added to
    tokens have none.

    Args:
        model: The dual encoder; its modules say what has no weight decay.
        parameters: Trained parameters by name.
        config: Learning rates and weight decay.
    """

    def rate(name: str) -> float:
        joined = name.startswith(("image.encoder.", "text.encoder."))
        return config.contrastive.lr_encoder if joined else config.lr

    no_maps = not_decayed(model) | {n for n in parameters if n.endswith(ENCODER_PLACES)}
    groups = groups_of(parameters, rate, config.weight_decay, no_maps)
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
