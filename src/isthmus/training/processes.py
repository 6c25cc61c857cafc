"""The processes of a run: who this one is, and what all of them agree on.

Accelerate finds the device and starts the process group (`torchrun`, `accelerate launch`, or
neither). Gradients of the strip are summed once a step, in one tensor: a wrapper that sums while
the backward pass runs would do so once for each part of an accumulated step, and cannot know that a
part without images leaves the connector without a gradient.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from isthmus.errors import ConfigError
from isthmus.model.vlm import VisionLanguageModel


class Processes:
    """This process among those of the run.

    Args:
        device: Where a process that is alone computes; several take a GPU each, or the CPU.

    Attributes:
        rank: Number of this process.
        count: How many there are.
        device: The device of this process.
    """

    def __init__(self, device: torch.device) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = not torch.cuda.is_available() if several else device.type == "cpu"
        state = PartialState(cpu=on_cpu)
        self.rank = int(state.process_index)
        self.count = int(state.num_processes)
        self.device = torch.device(state.device) if self.count > 1 else device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Sequence[float] | Tensor) -> Tensor:
        """Sums of numbers over all processes, float64."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.as_tensor(values, dtype=wide, device=self.device).clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total.cpu().double()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.count > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients of parameters that every process holds in whole.

        A parameter that a step did not need has a gradient of zero from then on, on every process
        and also where there is only one: how often a run is split changes nothing.
        """
        whole = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not isinstance(parameter, DTensor):
                whole.append(parameter.grad)
        if self.count == 1 or not whole:
            return
        flat = torch.cat([g.flatten() for g in whole])
        dist.all_reduce(flat)
        at = 0
        for gradient in whole:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()


def shard(model: VisionLanguageModel, processes: Processes) -> None:
    """Spreads a model's parameters over the processes (FSDP2).

    Each decoder layer, each gated block and the connector is gathered when it runs; the rest of the
    frozen parts with the model itself. Special tokens and LoRA adapters, a thousandth of the
    whole, stay on every process: they are trained in fp32 inside of frozen parts in half
    precision, and FSDP2 gathers one precision at a time. Single numbers, such as a temperature,
    stay too: there is no dimension along which to divide them.

    Args:
        model: On the device of this process.
        processes: More than one.

    Raises:
        ConfigError: If a medium besides images and clips is trained: not every process runs it in
            each step.
    """
    own = [medium for medium in model.media if isinstance(medium, nn.Module)]
    if any(p.requires_grad for medium in own for p in medium.parameters()):
        raise ConfigError(
            'train.sharding = "fsdp" trains no media besides images and clips: expected "ddp"'
        )
    mesh = dist.device_mesh.init_device_mesh(processes.device.type, (processes.count,))
    small = {
        p
        for n, p in model.named_parameters()
        if n.startswith("special_tokens.") or "lora_" in n or p.ndim == 0
    }
    for parameter in model.parameters():  # FSDP2 takes no other layout, and convolutions have one
        parameter.data = parameter.data.contiguous()
    parts = (*model.language.layers, *model.fusion.blocks.values(), model.connector, model)
    for part in parts:
        fully_shard(part, mesh=mesh, ignored_params=small)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of all processes already
            module.set_gradient_divide_factor(1.0)
            if processes.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def whole(tensor: Tensor) -> Tensor:
    """A tensor in whole, gathered from all processes where it is spread over them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor into one that may be spread over the processes."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    with torch.no_grad():
        target.copy_(source)


def norm_of(gradients: Sequence[Tensor], processes: Processes) -> float:
    """The norm of all gradients together, the same on every process."""
    spread = sum(
        float(g.to_local().double().square().sum()) for g in gradients if isinstance(g, DTensor)
    )
    own = sum(float(g.double().square().sum()) for g in gradients if not isinstance(g, DTensor))
    return float((processes.sum([spread])[0] + own) ** 0.5)
