"""Maps that are fitted to images, not trained: where an image lies among those that have names.

Letters: W numbers of the stages, C concepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNUSED = -1


def moved(vectors: Tensor, noise: float) -> Tensor:
    """Vectors (..., width) of an analysis, moved at random by so many of their lengths.

    Args:
        vectors: Where images lie.
        noise: The length of what is added, of vectors of length 1; 0 leaves them as they are.
    """
    if not noise:
        return vectors
    away = torch.randn_like(vectors) * noise / vectors.shape[-1] ** 0.5
    return F.normalize(vectors, dim=-1) + away


def spread(logits: Tensor, rows: Tensor, count: int) -> Tensor:
    """Logits (..., R) of rows, each a concept of `count`, as logits (..., count) of all concepts.

    Args:
        logits: Those of the rows.
        rows: (R,) int64, the concept of each; -1 in unused rows.
        count: Concepts; those of no row are at minus infinity.

    Example:
        >>> spread(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3, 0, -1]), 4)
        tensor([2., -inf, -inf, 1.])
    """
    found = logits.new_full((*logits.shape[:-1], count + 1), float("-inf"))
    place = torch.where(rows == UNUSED, count, rows)  # unused rows go where nothing is kept
    return found.index_copy(-1, place, logits)[..., :count]


class Fitted(nn.Module):
    """Buffers that stay in float32 where the model goes to half precision.

    Names that are near to each other differ by less than half precision holds.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, own in before.items():
            if getattr(self, name).dtype != own.dtype:
                setattr(self, name, own.to(getattr(self, name).device))
        return self


def fitted_names(model: nn.Module) -> set[str]:
    """The names of all tensors of a model that stay in float32."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, Fitted)
        for name, _ in module.named_buffers()
    }


class Discriminant(Fitted):
    """Linear discriminant analysis: which class what the stages see is nearest to.

        v = linear (x - mean),    logits_c = scale * cos(v, mean_c)

    Args:
        in_width: Numbers W of the stages.
        width: Dimensions that are kept.
        concepts: Classes C.

    Attributes:
        mean, linear, means, scale: Fitted by whoever knows the images, and frozen. `linear` whitens
            what differs within classes, in units of the radius within which the fit is trusted.
    """

    mean: Tensor
    linear: Tensor
    means: Tensor
    scale: Tensor

    def __init__(self, in_width: int, width: int, concepts: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_width))
        self.register_buffer("linear", torch.zeros(width, in_width))
        self.register_buffer("means", torch.zeros(concepts, width))
        self.register_buffer("scale", torch.ones(()))

    def vectors(self, stages: Tensor) -> Tensor:
        """Where an image lies (..., width), of what the stages see (..., W); float32."""
        with torch.autocast(stages.device.type, enabled=False):  # near names differ by little
            return (stages.float() - self.mean.float()) @ self.linear.float().T

    def logits(self, vectors: Tensor) -> Tensor:
        """(..., C): how near each concept is to vectors (..., width)."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.scale.float() * (F.normalize(vectors, dim=-1) @ self.means.float().T)


class Presence(Fitted):
    """Logistic regression: whether there is anything in what the stages see.

        there = sigmoid(linear (x - mean) + offset)

    Args:
        in_width: Numbers W of the stages.

    Attributes:
        mean, linear, offset: Fitted by whoever knows the images, and frozen.
    """

    mean: Tensor
    linear: Tensor
    offset: Tensor

    def __init__(self, in_width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_width))
        self.register_buffer("linear", torch.zeros(in_width))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, stages: Tensor) -> Tensor:
        """Shares (...) of what the stages see (..., W); float32."""
        with torch.autocast(stages.device.type, enabled=False):
            own = stages.float() - self.mean.float()
            return (own @ self.linear.float() + self.offset.float()).sigmoid()
