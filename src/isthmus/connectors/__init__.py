"""The connection module: features of a picture to visual tokens. One file per connector.

A connector of your own is any module that fits `Connector`; run it through
`isthmus.testing.check_connector` and pass it to `compose`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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
            "concept_bottleneck makes tokens of the language model's width from its word embeddings: use it "
            "with fusion inline, or with cross_attention and visual_width set to that width"
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


def build_connector(
    options: Any, shape: FeatureShape, width: int, embeddings: Tensor | None = None
) -> nn.Module:
    """A connector from its options, or the user's own after a check.

    Args:
        options: A dataclass from `isthmus.config`, or a module that fits `Connector`.
        shape: Shape of a picture's features.
        width: Width D that the visual tokens must have.
        embeddings: (V, D) the language model's word embeddings, which `concept_bottleneck` speaks in.

    Raises:
        ConfigError: If it is neither, or does not fit the parts.

    Example:
        >>> from isthmus.backbones.vision import FeatureShape
        >>> from isthmus.config import Pool
        >>> build_connector(Pool(tokens=4), FeatureShape(8, 16, (4, 4)), 6).num_tokens
        4
    """
    if isinstance(options, nn.Module):
        if not isinstance(options, Connector):
            raise ConfigError(
                f"{type(options).__name__} is no connector: it needs num_tokens (int), "
                "width (int) and forward(features) -> tokens"
            )
        if options.width != width:
            raise ConfigError(
                f"{type(options).__name__} makes tokens of width {options.width}, expected {width}"
            )
        return options
    name = getattr(options, "type", None)
    if name not in CONNECTORS or not isinstance(options, CONNECTOR_CONFIGS[name]):
        raise ConfigError(f"{options!r} is no connector: {suggestion(str(name), CONNECTORS)}")
    return CONNECTORS[name](asdict(options), shape, width, embeddings)
