"""One optimiser step: forward and backward over its parts, gradients summed, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import nn

from isthmus.config import TrainConfig
from isthmus.errors import TrainingError
from isthmus.model import VisionLanguageModel
from isthmus.training.feed import DataSet, Item
from isthmus.training.objectives import Loss, Objective
from isthmus.training.optim import learning_rate_factor
from isthmus.training.processes import Processes, norm_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScale:
    """Scale of the loss in fp16, whose small gradients would vanish (Micikevicius et al. 2018).

    Halved when a gradient overflows, doubled after `patience` steps without.
    """

    value: float = 1.0
    good_steps: int = 0
    patience: int = 2000

    def update(self, finite: bool) -> None:
        """After each step."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps % self.patience == 0:
            self.value *= 2


@dataclass
class StepResult:
    """What a step of all processes came to.

    Attributes:
        loss: What was minimised.
        losses: Mean loss per token of each data set, by name; those without a token are left out.
        norm: Norm of the gradient before clipping.
        samples, tokens: Samples learned from, and the tokens (or names) learned.
        broken: Samples that could not be used: what, and why.
        stop: Whether some process has been asked to stop.
    """

    loss: float
    losses: dict[str, float]
    norm: float
    samples: int
    tokens: int
    broken: list[tuple[str, str]] = field(default_factory=list)
    stop: bool = False


def autocast(device: torch.device, config: TrainConfig) -> AbstractContextManager[object]:
    """Half precision for activations; trained parameters stay fp32."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[config.precision])


def token_weights(
    counts: Sequence[int], data: Sequence[DataSet], config: TrainConfig
) -> list[float]:
    """What a token of each data set counts for in a step.

    Drawn together, tokens are averaged over the whole step and weighted: with weights of 1 the loss
    is the mean over all tokens. Accumulated, each data set's own mean is weighted (Flamingo,
    section 2.4, equation 2).

    Args:
        counts: Tokens of each data set in the step, over all processes.
        data: The data sets.
        config: Which of the two.
    """
    if config.mixture == "accumulate":
        return [d.loss_weight / max(1, c) for d, c in zip(data, counts, strict=True)]
    return [d.loss_weight / max(1, sum(counts)) for d in data]


def parts(items: Sequence[Item], size: int | None, *, by_data: bool = False) -> list[list[Item]]:
    """Samples in parts of one forward pass each.

    Args:
        items: In their order.
        size: Most samples of a part; None for as many as there are.
        by_data: Whether no part has samples of several data sets, whose pictures may be of several
            kinds.
    """
    size = size or max(1, len(items))
    groups = [list(items)]
    if by_data:
        groups = [list(g) for _, g in groupby(items, key=lambda i: i.draw.data)]
    return [g[i : i + size] for g in groups for i in range(0, len(g), size)]


@dataclass
class Stepper:
    """Takes the steps of a run.

    Attributes:
        model: The model, on the device of this process.
        data: The data sets, for their names and weights.
        config: The run's configuration.
        objective: What is minimised.
        processes: All of them.
        optimizer: Of the trained parameters.
        parameters: The trained parameters by name.
        scale: The loss scale, 1 but in fp16.
    """

    model: VisionLanguageModel
    data: Sequence[DataSet]
    config: TrainConfig
    objective: Objective
    processes: Processes
    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    scale: LossScale

    def take(self, step: int, items: Sequence[Item], stop: bool = False) -> StepResult:
        """One step on this process's samples, together with all other processes.

        Args:
            step: Its number, counted from 0.
            items: This process's samples.
            stop: Whether this process has been asked to stop.

        Raises:
            TrainingError: If the loss or, but in fp16, the gradient is not finite. Nothing has been
                changed then.
        """
        usable = [i for i in items if not i.why_not]
        counts = [0] * len(self.data)
        for item in usable:
            counts[item.draw.data] += self.objective.count(item)
        totals = self.processes.sum([*counts, len(usable), len(items) - len(usable), float(stop)])
        counts = [int(c) for c in totals[: len(counts)]]
        weights = token_weights(counts, self.data, self.config)
        sums, loss = self._backward(items, weights)
        reduced = self.processes.sum([*sums, loss])
        sums, loss = reduced[:-1].tolist(), float(reduced[-1])
        if not math.isfinite(loss):
            self._refuse(step, loss, usable)
        norm = self._update(step, usable) if sum(counts) else 0.0
        named = {d.name: s / c for d, s, c in zip(self.data, sums, counts, strict=True) if c}
        broken = [(str(i.record.origin or _name(i)), i.why_not) for i in items if i.why_not]
        if totals[-2]:
            broken = [b for own in self.processes.gather(broken) for b in own]
        return StepResult(
            loss, named, norm, int(totals[-3]), sum(counts), broken, stop=bool(totals[-1])
        )

    def _backward(
        self, items: Sequence[Item], weights: Sequence[float]
    ) -> tuple[list[float], float]:
        """Gradients of this process; summed losses of each data set, and the weighted total."""
        self.optimizer.zero_grad(set_to_none=True)
        sums, total = [0.0] * len(self.data), 0.0
        by_data = self.config.mixture == "accumulate"
        for part in parts(items, self.config.micro_batch_size, by_data=by_data):
            kept = [i for i in part if not i.why_not]
            if not kept and not getattr(self.objective, "always_pictures", False):
                continue
            own = [weights[i.draw.data] for i in kept]
            passes = self.objective.losses(self.model, kept, own)
            while (loss := self._next(passes)) is not None:
                (loss.total * self.scale.value).backward()  # type: ignore[no-untyped-call]
                total += float(loss.total.detach())
                found = loss.losses.double().cpu()
                for number, value in zip(loss.owner.tolist(), found.tolist(), strict=True):
                    sums[kept[number].draw.data] += value
        return sums, total

    def _next(self, passes: Iterator[Loss]) -> Loss | None:
        """The next forward pass, in half precision; the backward pass is outside of it."""
        with autocast(self.processes.device, self.config):
            return next(passes, None)

    def _update(self, step: int, usable: Sequence[Item]) -> float:
        """Sums, clips and applies the gradients; returns their norm before clipping."""
        self.processes.sum_gradients(self.parameters.values())
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = norm_of(gradients, self.processes) / self.scale.value
        finite = math.isfinite(norm)
        if not finite and self.config.precision != "fp16":
            self._refuse(step, norm, usable, "norm of the gradient")
        if finite:
            factor = min(1.0, self.config.clip / (norm + 1e-6)) / self.scale.value
            if factor != 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_factor(step, self.config)
            self.optimizer.step()
        if self.config.precision == "fp16":
            self.scale.update(finite)
        return norm

    def _refuse(self, step: int, value: float, items: Sequence[Item], what: str = "loss") -> None:
        """Stops a run whose numbers are none, and says which samples were in the step."""
        names = [n for own in self.processes.gather([_name(i) for i in items]) for n in own]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise TrainingError(
            f"the {what} of step {step + 1} is {value}; the last saved state is intact. Lower "
            f"train.lr, or look at the step's samples: {', '.join(names[:5])}{more}"
        )


def _name(item: Item) -> str:
    """What to call a sample in a message."""
    pictures = item.record.pictures
    if not pictures:
        return item.record.origin or repr(item.record.answer[:40])
    first = pictures[0]
    return str(first[0] if isinstance(first, tuple) else first)
