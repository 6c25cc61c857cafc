"""A vision model in the one form that `VisionEncoder` needs, whatever library it is from.

Letters: B images, N patches, D width, (h, w) rows and columns of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from isthmus.model.backbones.feature_shape import NativeGrid

Preprocess = Callable[[Image.Image], Tensor]
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Backbone:
    """A vision model in the one form that `VisionEncoder` needs, whatever library it is from.

    Functions are `functools.partial` over module-level ones, so that a copy of an encoder calls
    the copy of its model, and that it can be pickled where its library's models can.

    Attributes:
        model: The model, whose parameters are frozen.
        features: Pixels (B, 3, H, W) to all tokens (B, prefix + N, D) of the chosen layer, or to
            a feature map (B, D, h, w).
        preprocess: An image to pixels (3, H, W), the library's own way.
        size: (H, W) of its input.
        prefix: How many CLS and register tokens stand before the patches; None for all that
            stand before the grid. A feature map has none.
        mean: Its normalisation, per channel; None if it is not known.
        std: Its normalisation, per channel; None if it is not known.
        convolutional: Whether it is worth tracing, as convolutional networks are.
        grid: (rows, columns) of its patches; None to read it off the output.
        stages: Pixels to what `VisionEncoder.stages` returns; None if it has no stages.
        scores: Likewise, with the scores of its own classifier; None if it has none.
        regions: Pixels to the last map (B, D, h, w), what is seen of regions, (B, R, W + C), and
            the maps of all stages; None if it has no stages or no classifier.
        strides: Pixels that a place of each stage's map stands for, to a side.
        processor: The Transformers image processor behind `preprocess`; None if it is another's.
        native: How images are cut up where each is read at its own resolution; `size` is then that
            of a typical one.
    """

    model: nn.Module
    features: Features
    preprocess: Preprocess
    size: tuple[int, int]
    prefix: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    convolutional: bool = False
    grid: tuple[int, int] | None = None
    stages: Features | None = None
    scores: Features | None = None
    regions: Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor]]] | None = None
    strides: tuple[int, ...] = ()
    processor: Any = None
    native: NativeGrid | None = None
