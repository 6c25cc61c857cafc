"""`qwen2_5_vl`: Qwen2.5-VL, Transformers' `Qwen2_5_VLForConditionalGeneration`.

As Qwen2-VL, with windows in most layers of its tower and an RMS norm in its merger (Bai et al.
2025, arXiv 2502.13923, section 2.1).
"""

from __future__ import annotations

from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.merger import Merger
from isthmus.released.qwen2_vl import Qwen2VL, native_plan


@RELEASED.register("qwen2_5_vl")
class Qwen25VL:
    """Qwen2.5-VL: a tower of native resolution, a merger, tokens in the text."""

    architecture = "Qwen2_5_VLForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Qwen2_5_VLConfig
            >>> Qwen25VL.plan(Qwen2_5_VLConfig()).connector
            Merger(factor=2, norm='rms', deepstack=0)
        """
        factor = config.vision_config.spatial_merge_size
        return native_plan(config, Merger(factor=factor, norm="rms"))

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        return Qwen2VL.parts(model)
