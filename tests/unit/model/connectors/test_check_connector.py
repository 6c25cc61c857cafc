"""The published check of connectors, on connectors that it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isthmus import testing
from isthmus.model.backbones.feature_shape import FeatureShape


class Sound(nn.Module):
    """One linear map, which the broken ones below break in one place each."""

    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__()
        self.num_tokens, self.width = shape.tokens, width
        self.map = nn.Linear(shape.width, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.map(features)
        return out


def test_a_sound_connector_passes() -> None:
    testing.check_connector(Sound)


class IgnoresAParameter(Sound):
    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__(shape, width)
        self.forgotten = nn.Parameter(torch.zeros(width))


class MixesRows(Sound):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features - features.mean(dim=0))


class LooksAtTheRowBefore(Sound):
    """Mixes rows, and leaves the first of a batch right."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.cumsum(dim=0))


class PromisesAnotherNumber(Sound):
    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__(shape, width)
        self.num_tokens -= 1


class PromisesAnotherWidth(Sound):
    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__(shape, width)
        self.width = shape.width


class MakesAnotherWidth(Sound):
    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__(shape, width)
        self.map = nn.Linear(shape.width, width + 1)


class DividesByZero(Sound):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features / 0)


class HasAnInfiniteGradient(Sound):
    """sqrt(0) is fine, its slope is not."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + (self.map.bias - self.map.bias).sqrt()


class CutsTheGraph(Sound):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach())


class KeepsStateOutside(Sound):
    """What the state dict does not hold is not the same in the next process."""

    def __init__(self, shape: FeatureShape, width: int) -> None:
        super().__init__(shape, width)
        self.hidden = torch.randn(width)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + self.hidden.to(features.dtype)


class WorksInFp32Alone(Sound):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).float()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (IgnoresAParameter, "forgotten got no gradient"),
        (MixesRows, "an image alone and in a batch: they differ"),
        (LooksAtTheRowBefore, "an image alone and in a batch: they differ"),
        (PromisesAnotherNumber, r"tokens \(3, 16, 24\), expected \(3, 15, 24\)"),
        (PromisesAnotherWidth, r"connector\.width is not the width it was built for"),
        (MakesAnotherWidth, r"tokens \(3, 16, 25\), expected \(3, 16, 24\)"),
        (DividesByZero, "tokens are not finite"),
        (HasAnInfiniteGradient, "map.bias got a gradient that is not finite"),
        (CutsTheGraph, "no gradient reaches the features"),
        (KeepsStateOutside, "outputs before and after a state dict: they differ"),
        (WorksInFp32Alone, r"bfloat16 features gave torch\.float32 tokens"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_connector_is_found(
    broken: Callable[[FeatureShape, int], nn.Module], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_connector(broken)
