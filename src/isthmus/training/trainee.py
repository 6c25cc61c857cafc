"""What the training loop needs of whatever it trains.

A trainee knows its model, its data and its loss; `loop` knows steps, state, log, signals, broken
samples and checkpoints. The strip of a vision-language model (`vlm`) and a dual encoder (`clip`)
are trainees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from isthmus.config.model import TrainConfig
from isthmus.training.processes import Processes


class Drawn(Protocol):
    """A sample of a step; `str` of it is what messages call it."""

    @property
    def why_not(self) -> str:
        """What is wrong with it; "" if it can be used."""
        ...


S = TypeVar("S", bound=Drawn)


@dataclass(frozen=True)
class Pass:
    """What the forward and backward passes of a step came to.

    Attributes:
        loss: This process's share of what is minimised.
        sums: Summed losses of each data set in this process.
        counts: Terms in them, in all processes; a step without any changes nothing.
        tokens: Tokens learned, in all processes; 0 where a loss is not over tokens.
    """

    loss: float
    sums: Sequence[float]
    counts: Sequence[int]
    tokens: int = 0


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on what was kept aside.

    Attributes:
        figures: A figure for each data set, by name.
        error: Of all of them, the lower the better; the model with the lowest one is kept.
        answers: Answers for people to read.
    """

    figures: dict[str, float]
    error: float
    answers: list[dict[str, Any]] = field(default_factory=list)


class Trainee(Protocol[S]):
    """A model with its data and its loss, ready to be trained.

    Attributes:
        config: The run's configuration; its precision is decided.
        processes: Those that share the run.
        parameters: What is trained, by name.
        buffers: What changes besides, by name.
        optimizer: Of the parameters.
        names: What to call each data set.
        identity: What must be the same for a run to resume, under the names that a message calls
            it by: the model, its frozen tensors, the number of records.
        files: What `writer` writes into a folder, the one last that makes the model whole.
        evaluates: Whether anything was kept aside.
    """

    config: TrainConfig
    processes: Processes
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    names: list[str]
    identity: dict[str, Any]
    files: tuple[str, ...]
    evaluates: bool

    @property
    def model(self) -> nn.Module:
        """The model, on the device of this process."""
        ...

    def steps(self, start: int, stop: int) -> Iterator[list[S]]:
        """This process's samples of each step; they depend on the seed and the step alone."""
        ...

    def share(self, drawn: Sequence[S]) -> Any:
        """What the other processes must know of this process's samples."""
        ...

    def backward(self, step: int, drawn: Sequence[S], shares: Sequence[Any], scale: float) -> Pass:
        """Gradients of this process, multiplied by `scale`.

        Args:
            step: Number of the step, counted from 0.
            drawn: This process's samples, those that cannot be used among them.
            shares: What `share` gave in each process.
            scale: The loss scale of fp16, else 1.
        """
        ...

    def updated(self) -> None:
        """Called when the optimiser has changed the parameters, to keep them in bounds."""
        ...

    def entry(self) -> dict[str, Any]:
        """What the log says of the model besides; all processes call it together."""
        ...

    def evaluate(self, folder: Path) -> Evaluation:
        """Looks at what was kept aside; all processes call it together, in evaluation mode.

        Args:
            folder: The run's folder.
        """
        ...

    def writer(self, extra: Mapping[str, Any]) -> Callable[[Path], object]:
        """What writes the model into a folder; all processes call it together, one writes.

        Args:
            extra: What the description says besides.
        """
        ...
