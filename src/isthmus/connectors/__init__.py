"""The connection module: features of a picture to visual tokens. One file per connector.

A connector of your own is any module that fits `Connector`; run it through
`isthmus.testing.check_connector` and pass it to `compose`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isthmus.config import CONNECTOR_CONFIGS
from isthmus.connectors.attention_pool import AttentionPoolConnector
from isthmus.connectors.c_abstractor import CAbstractorConnector
from isthmus.connectors.concept_bottleneck import ConceptBottleneckConnector
from isthmus.connectors.linear import LinearConnector
from isthmus.connectors.mlp import MLPConnector
from isthmus.connectors.pixel_shuffle import PixelShuffleConnector
from isthmus.connectors.pool import PoolConnector
from isthmus.connectors.qformer import QFormerConnector
from isthmus.connectors.resampler import PerceiverResampler
from isthmus.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from isthmus.backbones.vision import FeatureShape


@runtime_checkable
class Connector(Protocol):
    """What a connector must have.

    Attributes:
        num_tokens: Visual tokens M that a picture becomes.
        width: Their width D.
    """

    num_tokens: int
    width: int

    def __call__(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        ...


Builder = Callable[[dict[str, Any], "FeatureShape", int, Tensor | None], nn.Module]


def _qformer(options: dict[str, Any], shape: FeatureShape, width: int) -> nn.Module:
    options["hidden"] = options.pop("width")
    return QFormerConnector(shape.width, width, **options)


def _concept_bottleneck(
    options: dict[str, Any], shape: FeatureShape, width: int, words: Tensor | None
) -> nn.Module:
    if words is None or words.shape[1] != width:
        raise ConfigError(
            "concept_bottleneck makes tokens of the language model's width from its word "
            "embeddings: use it with fusion inline, or with cross_attention and visual_width set "
            "to that width"
        )
    return ConceptBottleneckConnector(shape.width, words, **options)


CONNECTORS: dict[str, Builder] = {
    "linear": lambda o, s, w, e: LinearConnector(s.width, w, s.tokens, **o),
    "mlp": lambda o, s, w, e: MLPConnector(s.width, w, s.tokens, **o),
    "pixel_shuffle": lambda o, s, w, e: PixelShuffleConnector(s.width, w, s.grid, **o),
    "pool": lambda o, s, w, e: PoolConnector(s.width, w, s.grid, **o),
    "attention_pool": lambda o, s, w, e: AttentionPoolConnector(s.width, w, **o),
    "resampler": lambda o, s, w, e: PerceiverResampler(s.width, w, **o),
    "qformer": lambda o, s, w, e: _qformer(o, s, w),
    "c_abstractor": lambda o, s, w, e: CAbstractorConnector(s.width, w, s.grid, **o),
    "concept_bottleneck": _concept_bottleneck,
}


MAY_BE_ZERO = {"free", "max_frames"}


def _check_ranges(options: dict[str, Any], connector: str) -> None:
    """Refuses counts and widths below 1."""
    for key, value in options.items():
        least = 0 if key in MAY_BE_ZERO else 1
        if isinstance(value, int) and value < least:
            raise ConfigError(f"{connector}: {key}={value}, expected at least {least}")


def _check_own(connector: nn.Module, shape: FeatureShape, width: int) -> None:
    """Tries a module of the user's on one picture of zeros, and leaves it as it was."""
    name = type(connector).__name__
    if not isinstance(connector, Connector):
        raise ConfigError(
            f"{name} is no connector: it needs num_tokens (int), "
            "width (int) and forward(features) -> tokens"
        )
    if not isinstance(connector.num_tokens, int) or connector.num_tokens < 1:
        raise ConfigError(f"{name}.num_tokens is {connector.num_tokens!r}, expected 1 or more")
    if connector.width != width:
        raise ConfigError(f"{name} makes tokens of width {connector.width}, expected {width}")
    like = next(connector.parameters(), torch.empty(0))
    features = torch.zeros(1, shape.tokens, shape.width, device=like.device, dtype=like.dtype)
    modes = {module: module.training for module in connector.modules()}
    try:
        with torch.no_grad():
            tokens = connector.eval()(features)
    except Exception as error:  # whatever a foreign module raises, it does not fit
        raise ConfigError(
            f"{name} cannot read the encoder's features {tuple(features.shape)}: {error}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
    expected = (1, connector.num_tokens, width)
    if got != expected:
        raise ConfigError(
            f"{name} made {got} of one picture, expected (1, num_tokens, width) = {expected}"
        )


def build_connector(
    options: Any, shape: FeatureShape, width: int, embeddings: Tensor | None = None
) -> nn.Module:
    """A connector from its options, or the user's own after a check.

    Args:
        options: A dataclass from `isthmus.config`, or a module that fits `Connector`, which is
            tried on one picture of zeros.
        shape: Shape of a picture's features.
        width: Width D that the visual tokens must have.
        embeddings: (V, D) the language model's word embeddings, which `concept_bottleneck`
            speaks in.

    Raises:
        ConfigError: If it is neither, or does not fit the parts.

    Example:
        >>> from isthmus.backbones.vision import FeatureShape
        >>> from isthmus.config import Pool
        >>> build_connector(Pool(tokens=4), FeatureShape(8, 16, (4, 4)), 6).num_tokens
        4
    """
    if isinstance(options, nn.Module):
        _check_own(options, shape, width)
        return options
    name = getattr(options, "type", None)
    if name not in CONNECTORS or not isinstance(options, CONNECTOR_CONFIGS[name]):
        raise ConfigError(f"{options!r} is no connector: {suggestion(str(name), CONNECTORS)}")
    values = asdict(options)
    _check_ranges(values, name)
    return CONNECTORS[name](values, shape, width, embeddings)
