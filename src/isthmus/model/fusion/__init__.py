"""Where visual tokens meet the text: `inline` (early) or `cross_attention` (deep).

A fusion of your own is a configuration with `width` and `build`, which makes a module that fits
`Fusion`; pass it to `compose`. See `isthmus.model.fusion.base`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from isthmus.config.registry import FUSIONS
from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion.base import Fusion, FusionConfig
from isthmus.model.fusion.visual import Visual

__all__ = ["Fusion", "FusionConfig", "Visual", "build_fusion", "fusion_config"]
MEMBERS = (
    *("visual_width", "in_text", "sees", "blocks", "adapter"),
    *("layout", "embed", "look", "hook", "project", "gates", "activation_bytes"),
)
"""What a module needs to fit `Fusion`."""


def fusion_config(options: Any) -> FusionConfig:
    """The options themselves, if they are the configuration of a fusion.

    Raises:
        ConfigError: If they are not.

    Example:
        >>> from isthmus.model.fusion.inline import Inline
        >>> fusion_config(Inline()).width(language_width=64, vision_width=32)
        64
    """
    methods = [callable(getattr(options, name, None)) for name in ("width", "build")]
    if isinstance(options, type) or not all(methods):
        known = suggestion(str(options), FUSIONS.names())
        raise ConfigError(
            f"{options!r} is not a fusion: expected its configuration, such as "
            f"isthmus.CrossAttention(every=4), with methods width and build. {known}"
        )
    return cast(FusionConfig, options)


def build_fusion(options: Any, language: LanguageModel, visual_width: int) -> Fusion:
    """The fusion module of a configuration.

    Args:
        options: The configuration.
        language: The language model that it is built for.
        visual_width: Width of the visual tokens, as `options.width` says.

    Raises:
        ConfigError: If `options` configures no fusion, or what it builds does not fit `Fusion`.
    """
    made = fusion_config(options).build(language, visual_width)
    missing = [name for name in MEMBERS if not hasattr(made, name)]
    if not isinstance(made, nn.Module):
        missing.insert(0, "torch.nn.Module as its base")
    if missing:
        raise ConfigError(f"{type(made).__name__} is not a fusion: it lacks {', '.join(missing)}")
    if made.visual_width != visual_width:
        raise ConfigError(
            f"{type(made).__name__}.visual_width is {made.visual_width}: expected {visual_width}, "
            "which its configuration asked for"
        )
    return cast(Fusion, made)
