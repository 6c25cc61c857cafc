"""What a connector must hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isthmus.model.backbones.feature_shape import FeatureShape

SHAPE = FeatureShape(width=32, tokens=16, grid=(4, 4))
TOLERANCE = 1e-5


def close(got: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Asserts that two tensors have one shape and differ nowhere by more than a tolerance."""
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)} and {tuple(expected.shape)}"
    difference = float((got - expected).detach().abs().max()) if got.numel() else 0.0
    assert difference <= tolerance, f"{what}: they differ by {difference:.2e}"


def check_connector(
    build: Callable[[FeatureShape, int], nn.Module],
    *,
    shape: FeatureShape = SHAPE,
    width: int = 24,
) -> None:
    """Checks a connector: shapes, independence of rows, gradients, state, precision.

    Args:
        build: Makes the connector from the shape of the features and the width of the tokens.
        shape: Shape of an image's features.
        width: Width of the visual tokens.

    Raises:
        AssertionError: If one of the checks fails.

    Example:
        >>> from isthmus.model.connectors.linear import LinearConnector
        >>> check_connector(lambda shape, width: LinearConnector(shape.width, width, shape.tokens))
    """
    torch.manual_seed(0)
    connector = build(shape, width).eval()
    features = torch.randn(3, shape.tokens, shape.width, requires_grad=True)
    tokens: Tensor = connector(features)
    expected = (3, int(connector.num_tokens), width)  # type: ignore[arg-type]
    assert tuple(tokens.shape) == expected, f"tokens {tuple(tokens.shape)}, expected {expected}"
    assert tokens.isfinite().all(), "tokens are not finite"
    assert int(connector.width) == width, "connector.width is not the width it was built for"  # type: ignore[arg-type]

    alone = torch.cat([connector(image[None]) for image in features])
    close(alone, tokens, "an image alone and in a batch")

    (tokens * torch.randn_like(tokens)).sum().backward()  # type: ignore[no-untyped-call]
    check_gradients(connector)
    assert features.grad is not None, "no gradient reaches the features"
    assert features.grad.isfinite().all(), "the features' gradient is not finite"

    other = build(shape, width).eval()
    other.load_state_dict(connector.state_dict())
    close(other(features), tokens, "outputs before and after a state dict", 0.0)

    half = connector.to(torch.bfloat16)(features.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16, f"bfloat16 features gave {half.dtype} tokens"


def check_gradients(module: nn.Module) -> None:
    """Every trainable parameter has a finite gradient.

    It may be zero throughout: behind a map that starts at zero it is, until that map has moved.
    """
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), f"{name} got a gradient that is not finite"
