"""`llava_next` and `llava_onevision`: LLaVA-NeXT and LLaVA-OneVision, Transformers' classes.

As LLaVA-1.5, but the image comes whole and in a grid of tiles that is one large image again, each
row of it ended by a vector that is trained (Liu et al. 2024,
llava-vl.github.io/blog/2024-01-30-llava-next; Li et al. 2024, arXiv 2408.03326, section 3.2).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.mlp import MLP
from isthmus.model.media.any_resolution import AnyResolution, unsplit
from isthmus.model.media.tiles import Unsplit
from isthmus.released.llava import (
    TOWERS,
    named,
    read_layer,
    refuse_logit_options,
    refuse_other_projector,
)


@RELEASED.register("llava_next")
class LlavaNext:
    """LLaVA-NeXT (1.6): all rows and columns of tokens that the image fills."""

    architecture = "LlavaNextForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import LlavaNextConfig
            >>> LlavaNext.plan(LlavaNextConfig()).media
            (AnyResolution(max_tiles=None, cap=0),)
        """
        return newline_plan(config, "LLaVA-NeXT", LlavaNext.architecture, cap=0)

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        return newline_parts(model)


@RELEASED.register("llava_onevision")
class LlavaOnevision:
    """LLaVA-OneVision: no more tokens of the grid than nine tiles have.

    Several images of a prompt are cut like one alone, unless `max_tiles` is 1.
    """

    architecture = "LlavaOnevisionForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import LlavaOnevisionConfig
            >>> LlavaOnevision.plan(LlavaOnevisionConfig()).media
            (AnyResolution(max_tiles=None, cap=9),)
        """
        told = re.fullmatch(r"anyres_max_(\d+)", config.vision_aspect_ratio)
        if told is None:
            raise ConfigError(
                f'this LLaVA-OneVision has vision_aspect_ratio = "{config.vision_aspect_ratio}": '
                'expected "anyres_max_" and a number'
            )
        name = LlavaOnevision.architecture
        return newline_plan(config, "LLaVA-OneVision", name, cap=int(told[1]))

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        return newline_parts(model)


def newline_plan(config: Any, name: str, architecture: str, *, cap: int) -> Plan:
    """The plan of either.

    Raises:
        ConfigError: If it has another tower or projector, reads several layers, or keeps a token
            that is no patch.
    """
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise ConfigError(
            f'this {name} has the vision tower "{tower}": expected one of {", ".join(TOWERS)}'
        )
    layer = read_layer(config, name)
    refuse_other_projector(config, name)
    refuse_logit_options(config, name, architecture)
    strategy = config.vision_feature_select_strategy
    fitting = "default" if tower == "clip_vision_model" else "full"
    if strategy != fitting:
        raise ConfigError(
            f'this {name} takes the features of {tower} by the strategy "{strategy}", which leaves '
            f'no token for each patch alone: expected "{fitting}"'
        )
    return Plan(
        feature_layer=layer,
        keep_cls=False,
        prefix=None,
        connector=MLP(depth=2, bias=config.multimodal_projector_bias),
        image_id=config.image_token_id,
        media=(AnyResolution(cap=cap),),
        preprocess=partial(Unsplit, shown=unsplit),
    )


def newline_parts(model: Any) -> Modules:
    """The modules of either."""
    inner = model.model
    projector = inner.multi_modal_projector
    return Modules(
        tower=inner.vision_tower,
        decoder=inner.language_model,
        head=model.get_output_embeddings(),
        connector=named({"layers.0": projector.linear_1, "layers.2": projector.linear_2}),
        medium={"cut.newline": inner.image_newline},
    )
