"""`qwen3_vl`: Qwen3-VL, Transformers' `Qwen3VLForConditionalGeneration`.

As Qwen2-VL; besides, earlier layers of its tower have mergers of their own, whose tokens are added
to the states of the image behind the first decoder layers (arXiv 2511.21631, section 2).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from isthmus.config.registry import RELEASED
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.merger import Merger
from isthmus.model.fusion.inline import Inline
from isthmus.released.qwen2_vl import named, native_parts, native_plan


@RELEASED.register("qwen3_vl")
class Qwen3VL:
    """Qwen3-VL: a tower of native resolution, mergers, tokens in the text and behind layers."""

    architecture = "Qwen3VLForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Qwen3VLConfig
            >>> Qwen3VL.plan(Qwen3VLConfig()).fusion
            Inline(adapter=None, deepstack=3)
        """
        vision = config.vision_config
        layers = len(vision.deepstack_visual_indexes)
        connector = Merger(factor=vision.spatial_merge_size, deepstack=layers)
        fusion = Inline(deepstack=layers)
        return native_plan(config, connector, fusion=fusion, deepstack=layers > 0)

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        visual = model.model.visual
        indexes = list(visual.deepstack_visual_indexes)
        earlier = [visual.deepstack_merger_list[indexes.index(layer)] for layer in sorted(indexes)]
        mergers = {"last": visual.merger}
        mergers |= {f"earlier.{n}": own for n, own in enumerate(earlier)}
        connector: dict[str, Tensor] = {}
        for prefix, own in mergers.items():
            layers = {"norm": own.norm, "first": own.linear_fc1, "second": own.linear_fc2}
            connector |= named(prefix, layers)
        return native_parts(model, connector)
