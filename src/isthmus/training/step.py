"""One optimiser step: gradients of all processes summed, clipped, applied; the same for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import torch

from isthmus.errors import TrainingError
from isthmus.training.optim import learning_rate_factor
from isthmus.training.processes import norm_of
from isthmus.training.trainee import S, Trainee

FP16_SCALE = 2.0**16
"""The loss scale that a run in fp16 starts with."""


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
        losses: Mean loss of each data set, by name; those without a term are left out.
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

    def entry(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The step as the log has it."""
        return {
            "loss": round(self.loss, 6),
            "losses": {n: round(v, 6) for n, v in self.losses.items()},
            "norm": round(self.norm, 4),
            "lr": max(g["lr"] for g in optimizer.param_groups),
            "samples": self.samples,
            **({"tokens": self.tokens} if self.tokens else {}),
        }


@dataclass
class Stepper(Generic[S]):
    """Takes the steps of a run.

    Attributes:
        trainee: What is trained.
        scale: The loss scale, 1 but in fp16.
    """

    trainee: Trainee[S]
    scale: LossScale = field(default_factory=LossScale)

    def take(self, step: int, drawn: Sequence[S], *, stop: bool = False) -> StepResult:
        """One step on this process's samples, together with all other processes.

        Args:
            step: Its number, counted from 0.
            drawn: This process's samples.
            stop: Whether this process has been asked to stop.

        Raises:
            TrainingError: If the loss or, but in fp16, the gradient is not finite. Nothing has been
                changed then.
        """
        trainee, processes = self.trainee, self.trainee.processes
        usable = [s for s in drawn if not s.why_not]
        own = [(str(s), s.why_not) for s in drawn if s.why_not]
        told = processes.gather((len(usable), own, stop, trainee.share(drawn)))
        # Dropout depends on the step alone, so that a run that resumes draws what it would have
        seed = (trainee.config.seed * 1_000_003 + step) * processes.count + processes.rank
        torch.manual_seed(seed)
        trainee.optimizer.zero_grad(set_to_none=True)
        found = trainee.backward(step, drawn, [share for *_, share in told], self.scale.value)
        *sums, loss = processes.sum([*found.sums, found.loss]).tolist()
        if not math.isfinite(loss):
            self._refuse(step, loss, usable)
        norm = self._update(step, usable) if sum(found.counts) else 0.0
        terms = zip(trainee.names, sums, found.counts, strict=True)
        return StepResult(
            loss=loss,
            losses={name: value / count for name, value, count in terms if count},
            norm=norm,
            samples=sum(count for count, *_ in told),
            tokens=found.tokens,
            broken=[b for _, broken, *_ in told for b in broken],
            stop=any(asked for _, _, asked, _ in told),
        )

    def _update(self, step: int, usable: Sequence[S]) -> float:
        """Sums, clips and applies the gradients; returns their norm before clipping."""
        trainee, config = self.trainee, self.trainee.config
        trainee.processes.sum_gradients(trainee.parameters.values())
        gradients = [p.grad for p in trainee.parameters.values() if p.grad is not None]
        norm = norm_of(gradients, trainee.processes) / self.scale.value
        finite = math.isfinite(norm)
        if not finite and config.precision != "fp16":
            self._refuse(step, norm, usable, "norm of the gradient")
        if finite:
            factor = min(1.0, config.clip / (norm + 1e-6)) / self.scale.value
            if factor != 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
            for group in trainee.optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_factor(step, config)
            trainee.optimizer.step()
            trainee.updated()
        if config.precision == "fp16":
            self.scale.update(finite)
        return norm

    def _refuse(self, step: int, value: float, samples: Sequence[S], what: str = "loss") -> None:
        """Stops a run whose numbers are none, and says which samples were in the step."""
        names = [n for own in self.trainee.processes.gather([*map(str, samples)]) for n in own]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise TrainingError(
            f"the {what} of step {step + 1} is {value}; the last saved state is intact. Lower "
            f"train.lr, or look at the step's samples: {', '.join(names[:5])}{more}"
        )
