"""Precision and attention of a run: what "auto" means on this machine, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch

from isthmus.config.model import TrainConfig
from isthmus.machine import attention_for, precision_for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_precision(device: torch.device) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """The precision to train in on a device, and the reason.

    Args:
        device: Where the model is.
    """
    precision = precision_for("auto", device)
    where = "GPU" if device.type == "cuda" else "CPU" if device.type == "cpu" else "device"
    has = "computes in bf16" if precision == "bf16" else "has no bf16 instructions"
    return precision, f"this {where} {has}"


def decided(config: TrainConfig, device: torch.device) -> TrainConfig:
    """A configuration with a precision and an attention in place of "auto"."""
    precision, attention = config.precision, config.attention
    if precision == "auto":
        precision = best_precision(device)[0]
    if attention == "auto":
        attention = attention_for(DTYPES[precision], device)
    return replace(config, precision=precision, attention=attention)


def choice(config: TrainConfig, device: torch.device) -> str:
    """A line that says in what, where and with how many threads a run computes, and why.

    Args:
        config: As the user gave it.
        device: Where the model is.

    Example:
        >>> choice(TrainConfig(precision="bf16"), torch.device("cuda"))
        'training in bf16 (train.precision) on cuda, attention sdpa'
    """
    precision, why = config.precision, "train.precision"
    if config.precision == "auto":
        precision, why = best_precision(device)
    where = str(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        where = f"the CPU with {threads} thread{'s' if threads > 1 else ''}"
        if config.precision in ("bf16", "fp16"):
            why += "; on a CPU fp32 is often far faster"
    attention = decided(config, device).attention
    return f"training in {precision} ({why}) on {where}, attention {attention}"


def autocast(device: torch.device, config: TrainConfig) -> AbstractContextManager[object]:
    """Half precision for activations; trained parameters stay fp32."""
    precision = decided(config, device).precision
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])
