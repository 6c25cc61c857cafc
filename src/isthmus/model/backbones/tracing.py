"""Convolutional networks as one traced graph, which a CPU runs several times faster.

PyTorch's tracer is in maintenance and may go: then, or with `ISTHMUS_TRACED=0`, networks run as
they are (`speedups.speedup`).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from isthmus.config.speedups import speedup
from isthmus.model.backbones.backbone import Features


def frozen_graph(model: nn.Module, features: Features, size: tuple[int, int]) -> Features | None:
    """A model as one traced graph with its weights frozen in; None if that is not the model.

    A trace follows one example and may take its numbers for constants, the number of images
    among them (attention between convolutions does that). So it is made from two images and
    must agree with the model on one.

    Args:
        model: The model.
        features: Which of its functions, of pixels (B, 3, H, W).
        size: (H, W) of the pixels.
    """
    if not speedup("traced"):
        return None

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return features(x)

    two = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer is in maintenance, and works
        try:
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                Traced().eval(), two, check_trace=False
            )
            graph: Features = torch.jit.freeze(traced)
            got, expected = graph(two[:1]), features(two[:1])
        except (RuntimeError, AttributeError):
            return None
    same = got.shape == expected.shape and (got - expected).abs().max() <= 1e-3 * expected.std()
    return graph if same else None
