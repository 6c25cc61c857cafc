"""The precision of parts that several models may hold."""

from __future__ import annotations

from typing import Any

import torch

from isthmus.errors import ConfigError
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.vision import VisionEncoder


def refuse_conversion(part: Any, dtype: torch.dtype | None) -> None:
    """Refuses to convert a part that was handed in, since other models may hold it too.

    Args:
        part: What stands for a vision encoder or a language model; names are loaded anew and may
            have any precision.
        dtype: The precision that is wanted; None for any.

    Raises:
        ConfigError: If the part is a `VisionEncoder` or `LanguageModel` of another precision.
    """
    if dtype is None or not isinstance(part, (VisionEncoder, LanguageModel)):
        return
    own = next((p.dtype for p in part.parameters() if p.is_floating_point()), dtype)
    if own != dtype:
        raise ConfigError(
            f"dtype={dtype} would convert the {type(part).__name__} that was handed in, which is "
            f"{own} and may be part of other models: load it in {dtype}, or pass "
            "copy.deepcopy(part).to(dtype)"
        )
