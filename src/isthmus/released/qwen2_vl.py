"""`qwen2_vl`: Qwen2-VL, Transformers' `Qwen2VLForConditionalGeneration`.

Its tower reads each image at its own resolution. Squares of patches become one token each, by a
layer norm and an MLP. The tokens of an image stand in the text with a row and a column of their own
(Wang et al. 2024, arXiv 2409.12191, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from isthmus.config.registry import RELEASED
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.merger import Merger
from isthmus.model.media.native import NativeImages


@RELEASED.register("qwen2_vl")
class Qwen2VL:
    """Qwen2-VL: a tower of native resolution, a merger, tokens in the text."""

    architecture = "Qwen2VLForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Qwen2VLConfig
            >>> Qwen2VL.plan(Qwen2VLConfig()).connector
            Merger(factor=2, norm='layer', deepstack=0)
        """
        return native_plan(config, Merger(factor=config.vision_config.spatial_merge_size))

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        merger = model.model.visual.merger
        layers = {"norm": merger.ln_q, "first": merger.mlp[0], "second": merger.mlp[2]}
        return native_parts(model, named("last", layers))


def native_plan(config: Any, connector: Merger, **more: Any) -> Plan:
    """The plan of a model with a tower of native resolution.

    Args:
        config: Of the whole model.
        connector: Its merger.
        **more: Other options of `Plan`.
    """
    return Plan(
        feature_layer=-1,
        keep_cls=False,
        prefix=None,
        connector=connector,
        image_id=config.image_token_id,
        media=(NativeImages(),),
        **more,
    )


def native_parts(model: Any, connector: Mapping[str, Tensor]) -> Modules:
    """The modules of a model with a tower of native resolution.

    Args:
        model: The whole model.
        connector: The tensors of its mergers, by our names.
    """
    return Modules(
        tower=model.model.visual,
        decoder=model.model.language_model,
        head=model.get_output_embeddings(),
        connector=connector,
    )


def named(prefix: str, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of some layers, by the names that one of our modules has for them."""
    return {
        f"{prefix}.{place}.{name}": tensor
        for place, layer in layers.items()
        for name, tensor in layer.state_dict().items()
    }
