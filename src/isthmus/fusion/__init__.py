"""Where visual tokens meet the text: `inline` (early) or `cross_attention` (deep)."""

from __future__ import annotations

from isthmus.backbones.language import LanguageModel
from isthmus.config import CrossAttention, Inline
from isthmus.errors import ConfigError, suggestion
from isthmus.fusion.inject import CrossAttentionFusion
from isthmus.fusion.inline import InlineFusion

__all__ = [
    "FUSIONS",
    "CrossAttentionFusion",
    "Fusion",
    "InlineFusion",
    "build_fusion",
    "visual_width",
]
FUSIONS = {"inline": InlineFusion, "cross_attention": CrossAttentionFusion}
Fusion = InlineFusion | CrossAttentionFusion


def visual_width(config: Inline | CrossAttention, language_width: int, vision_width: int) -> int:
    """The width that visual tokens must have for a fusion.

    Inline tokens stand between words and have the language model's width. Flamingo's keep the
    vision encoder's width, unless the configuration names another.
    """
    if isinstance(config, Inline) or (config.inline and config.visual_width is None):
        return language_width
    return config.visual_width or vision_width


def build_fusion(
    config: Inline | CrossAttention, language: LanguageModel, connector: object
) -> Fusion:
    """The fusion module for a connector's visual tokens.

    Raises:
        ConfigError: If `config` is no fusion.
    """
    tokens, width = int(connector.num_tokens), int(connector.width)  # type: ignore[attr-defined]
    if isinstance(config, Inline):
        return InlineFusion(tokens)
    if isinstance(config, CrossAttention):
        return CrossAttentionFusion(config, language, width, tokens)
    raise ConfigError(f"{config!r} is no fusion: {suggestion('', FUSIONS)}")
