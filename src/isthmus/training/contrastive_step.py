"""One step of contrastive training, and how good the model is at naming pictures.

Letters: B pairs of this process, N pairs of all processes, K classes or texts, D width of the
common space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.gradient_cache import cached_backward
from isthmus.align.joined import JoinedImageTower, JoinedTextTower
from isthmus.align.losses import clip_loss, siglip_loss
from isthmus.errors import TrainingError
from isthmus.training.contrastive_config import ContrastiveConfig
from isthmus.training.contrastive_data import Pair, PairFeed, names_of, number_of, same_things
from isthmus.training.optim import learning_rate_factor
from isthmus.training.processes import Processes, norm_of
from isthmus.training.step import StepResult

PICTURES_AT_ONCE = 256
"""Pictures of one pass in an evaluation."""


class ContrastiveStepper:
    """One optimiser step: vectors of all pairs, the loss, gradients summed, clipped, applied.

    Args:
        model: The model, on the device of this process.
        feed: For what is kept of locked encoders.
        config: Chunk, same names, clipping, bounds of the factor.
        processes: Those that share the step.
        optimizer: Of the parameters.
        parameters: What is trained, by name.
    """

    def __init__(
        self,
        model: DualEncoder,
        feed: PairFeed,
        config: ContrastiveConfig,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.model, self.feed, self.config = model, feed, config
        self.processes, self.optimizer, self.parameters = processes, optimizer, parameters
        self.group = dist.group.WORLD if processes.count > 1 else None

    def take(self, step: int, drawn: Sequence[Pair], *, stop: bool = False) -> StepResult:
        """Takes one step; all processes take it together.

        Args:
            step: Its number, counted from 0.
            drawn: This process's pairs.
            stop: Whether this process has been asked to stop.

        Raises:
            TrainingError: If the loss or the gradient is not finite, or a process has no pair that
                can be used. Nothing has been changed then.
        """
        usable = [p for p in drawn if not p.why_not]
        broken = [(str(p), p.why_not) for p in drawn if p.why_not]
        told = self.processes.gather((len(usable), broken, stop, self._numbers(usable)))
        broken = [b for _, own, _, _ in told for b in own]
        if not all(count for count, *_ in told):
            listed = "; ".join(f"{name}: {why}" for name, why in broken[:5])
            raise TrainingError(f"no pair of step {step + 1} can be used: {listed}")
        names = self._names([number for *_, own in told for number in own], told)
        # Dropout depends on the step alone, so that a run that goes on draws what it would have
        seed = (self.config.seed * 1_000_003 + step) * self.processes.count + self.processes.rank
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(self.processes.sum([float(self._backward(usable, names))])[0])
        if not math.isfinite(loss):
            self._refuse(step, "loss", loss, usable)
        norm = self._update(step, usable)
        count = sum(count for count, *_ in told)
        stops = any(asked for _, _, asked, _ in told)
        return StepResult(loss, {"pairs": loss}, norm, count, count, broken, stop=stops)

    def _numbers(self, pairs: Sequence[Pair]) -> list[tuple[int, int]]:
        if self.config.same_name == "negative":
            return []
        return [(number_of(p.first), number_of(p.name)) for p in pairs]

    def _names(self, numbers: list[tuple[int, int]], told: Sequence[Any]) -> Tensor | None:
        """Numbers (B,) of this process's pairs, the same for pairs that show the same thing."""
        if self.config.same_name == "negative":
            return None
        found = same_things(numbers)
        first = sum(count for count, *_ in told[: self.processes.rank])
        own = found[first : first + told[self.processes.rank][0]]
        return torch.tensor(own, device=self.processes.device)

    def _backward(self, pairs: Sequence[Pair], names: Tensor | None) -> Tensor:
        """Gradients of this process, and its share of the loss."""

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            how: dict[str, Any] = {"names": names, "group": self.group}
            how["same_name"] = self.config.same_name
            factor = self.model.logit_scale.exp()
            if self.model.logit_bias is None:
                return clip_loss(images, texts, factor, **how)
            return siglip_loss(images, texts, factor, self.model.logit_bias, **how)

        size = self.config.chunk or len(pairs)
        chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        encode = encoders(self.model, self.feed)
        half = torch.autocast(
            self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
        with half:
            if len(chunks) > 1:
                return cached_backward(loss, (encode[0], chunks), (encode[1], chunks))
            value = loss(encode[0](pairs), encode[1](pairs))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _update(self, step: int, pairs: Sequence[Pair]) -> float:
        """Sums, clips and applies the gradients; returns their norm before clipping."""
        self.processes.sum_gradients(self.parameters.values())
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = norm_of(gradients, self.processes)
        if not math.isfinite(norm):
            self._refuse(step, "norm of the gradient", norm, pairs)
        factor = min(1.0, self.config.clip / (norm + 1e-6))
        if factor != 1.0:
            for gradient in gradients:
                gradient.mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, self.config)
        self.optimizer.step()
        bounds = math.log(self.config.least_scale), math.log(self.config.most_scale)
        with torch.no_grad():
            self.model.logit_scale.clamp_(*bounds)
        return norm

    def _refuse(self, step: int, what: str, value: float, pairs: Sequence[Pair]) -> None:
        names = [n for own in self.processes.gather([str(p) for p in pairs[:5]]) for n in own]
        raise TrainingError(
            f"the {what} of step {step + 1} is {value}; the last saved state is intact. Lower "
            f"train.lr, or look at the step's pairs: {', '.join(names[:5])}, ..."
        )

    def entry(self, result: StepResult) -> dict[str, Any]:
        """A step as the log has it."""
        bias = self.model.logit_bias
        return {
            "loss": round(result.loss, 6),
            "norm": round(result.norm, 4),
            "lr": max(g["lr"] for g in self.optimizer.param_groups),
            "samples": result.samples,
            "scale": round(float(self.model.logit_scale.detach().exp()), 4),
            **({} if bias is None else {"bias": round(float(bias.detach()), 4)}),
        }


def encoders(
    model: DualEncoder, feed: PairFeed
) -> tuple[Callable[[Sequence[Pair]], Tensor], Callable[[Sequence[Pair]], Tensor]]:
    """From pairs to vectors (B, D) of length 1: of their pictures, and of their texts."""

    def images(pairs: Sequence[Pair]) -> Tensor:
        found = feed.images(pairs).to(model.device)
        if feed.pictures is None:
            return model.encode_images(found)
        assert isinstance(model.image, JoinedImageTower)
        return F.normalize(model.image.map(found), dim=-1)

    def texts(pairs: Sequence[Pair]) -> Tensor:
        return encode_texts(model, feed, [p.text for p in pairs])

    return images, texts


def encode_texts(model: DualEncoder, feed: PairFeed, texts: Sequence[str]) -> Tensor:
    """Vectors (K, D) of length 1 of texts, from kept vectors where there are any."""
    if feed.texts is None:
        return model.encode_texts(texts)
    assert isinstance(model.text, JoinedTextTower)
    return F.normalize(model.text.map(feed.texts.get(texts).to(model.device)), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    model: DualEncoder, feed: PairFeed, processes: Processes
) -> dict[str, float]:
    """The share of each data set's pictures that are given one of their own names.

    Classes are the records' first names; each class's vector is the mean over its texts, as in
    `ZeroShotClassifier`. A picture that cannot be read counts as not found.

    Args:
        model: The model, in evaluation mode.
        feed: Of the data sets.
        processes: Those that share the work.
    """
    images, _ = encoders(model, feed)
    shares = {}
    for number, data in enumerate(feed.data):
        labels = data.labelled()
        flat = [text for many in labels.values() for text in many]
        owner = torch.tensor([k for k, many in enumerate(labels.values()) for _ in many])
        vectors = encode_texts(model, feed, flat).float()
        sums = vectors.new_zeros(len(labels), vectors.shape[1])
        weights = F.normalize(sums.index_add_(0, owner.to(vectors.device), vectors), dim=-1)
        classes, right = list(labels), 0
        own = range(processes.rank, len(data.records), processes.count)
        for start in range(0, len(own), PICTURES_AT_ONCE):
            drawn = [feed.pair(number, i, (0, 0, 0, 0)) for i in own[start:][:PICTURES_AT_ONCE]]
            usable = [p for p in map(feed.opened, drawn) if not p.why_not]
            if usable:
                best = (images(usable).float() @ weights.T).argmax(dim=1).tolist()
                for pair, k in zip(usable, best, strict=True):
                    right += classes[k] in names_of(data.records[pair.index])
        shares[data.name] = float(processes.sum([right])[0]) / len(data.records)
    return shares
