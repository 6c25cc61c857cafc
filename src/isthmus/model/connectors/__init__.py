"""The connection module: features of an image to visual tokens. One file per connector.

A file holds the module, and its configuration: a frozen dataclass that is registered by name,
with `build(shape, width, embeddings)`, which makes the module, and `toy()`, the same at a size for
trials. A module whose parameters are positions or queries names them in `no_weight_decay()`, as
timm's modules do; what its tokens are made of it may tell in methods that `patch_shares` names.
Nothing else needs to know of it.

A connector of your own is any module that fits `Connector`; run it through
`isthmus.testing.check_connector` and pass it to `compose`. With such a configuration, in any
module that Python can import, it can also be named: `type = "package.module:Class"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


@runtime_checkable
class Connector(Protocol):
    """What a connector must have.

    Attributes:
        num_tokens: Visual tokens M that an image becomes.
        width: Their width D.
    """

    num_tokens: int
    width: int

    # one that makes more tokens of more patches also has `tokens_of(patches) -> int`

    def __call__(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D) of features (B, N, D_vision)."""
        ...


def tokens_of(connector: nn.Module, patches: int) -> int:
    """How many visual tokens a connector makes of an image of so many patches.

    Args:
        connector: The connector. One that makes more of more patches has a method `tokens_of`.
        patches: The number of patches.

    Example:
        >>> from isthmus.model.connectors.mlp import MLPConnector
        >>> from isthmus.model.connectors.resampler import PerceiverResampler
        >>> tokens_of(MLPConnector(8, 6, 16), 20), tokens_of(PerceiverResampler(8, 6), 20)
        (20, 64)
    """
    own = getattr(connector, "tokens_of", None)
    return int(connector.num_tokens if own is None else own(patches))  # type: ignore[arg-type]


def _check_own(connector: nn.Module, shape: FeatureShape, width: int) -> None:
    """Tries a module of the user's on one image of zeros, and leaves it as it was."""
    name = type(connector).__name__
    if not isinstance(connector, Connector):
        raise ConfigError(
            f"{name} is not a connector: it needs num_tokens (int), "
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
            f"{name} made {got} of one image, expected (1, num_tokens, width) = {expected}"
        )


def build_connector(
    options: Any, shape: FeatureShape, width: int, embeddings: Tensor | None = None
) -> nn.Module:
    """A connector from its options, or the user's own after a check.

    Args:
        options: The configuration of a connector, or a module that fits `Connector`. What is not
            built in is tried on one image of zeros.
        shape: Shape of an image's features.
        width: Width D that the visual tokens must have.
        embeddings: (V, D) the language model's word embeddings, which `names`
            speaks in.

    Raises:
        ConfigError: If it is neither, or does not fit the parts.

    Example:
        >>> from isthmus.model.backbones.feature_shape import FeatureShape
        >>> from isthmus.model.connectors.pool import Pool
        >>> build_connector(Pool(tokens=4), FeatureShape(8, 16, (4, 4)), 6).num_tokens
        4
    """
    if shape.regions is not None and not getattr(options, "reads_regions", False):
        raise ConfigError(
            f"{type(options).__name__} reads only patches: leave vision.regions = true out, or "
            "take a connector that reads regions"
        )
    if isinstance(options, nn.Module):
        _check_own(options, shape, width)
        return options
    is_fusion = callable(getattr(options, "width", None))  # it has a method `build` too
    if isinstance(options, type) or is_fusion or not callable(getattr(options, "build", None)):
        known = suggestion(str(options), CONNECTORS.names())
        raise ConfigError(
            f"{options!r} is not a connector: expected its configuration, such as "
            f"isthmus.Resampler(), or a module. {known}"
        )
    made: nn.Module = options.build(shape, width, embeddings)
    if not type(options).__module__.startswith(f"{__name__}."):
        _check_own(made, shape, width)
    return made
