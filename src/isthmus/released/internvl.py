"""`internvl`: InternVL in Transformers' form, the repositories whose names end in "-hf".

Its own vision transformer reads tiles; four neighbouring patches become one vector, which goes
through a layer norm and two linear maps with a GELU between them (Chen et al. 2024, arXiv
2404.16821, section 3.1).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.pixel_shuffle_mlp import PixelShuffleMLP
from isthmus.model.media.plain_tiles import PlainTiles, unsplit
from isthmus.model.media.tiles import Unsplit
from isthmus.released.llava import named, read_layer, refuse_logit_options, refuse_other_projector


@RELEASED.register("internvl")
class InternVL:
    """InternVL 2.5, 3 and later: up to twelve tiles and the whole image."""

    architecture = "InternVLForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import InternVLConfig
            >>> plan = InternVL.plan(InternVLConfig())
            >>> plan.final_norm, plan.connector, plan.media[0].behind
            (True, PixelShuffleMLP(factor=2), '</img>')
        """
        tower = config.vision_config
        if tower.model_type != "internvl_vision":
            raise ConfigError(
                f'this InternVL has the vision tower "{tower.model_type}": expected internvl_vision'
            )
        layer = read_layer(config, "InternVL")
        refuse_other_projector(config, "InternVL")
        refuse_logit_options(config, "InternVL", InternVL.architecture)
        if config.vision_feature_select_strategy != "default":
            raise ConfigError(
                "this InternVL keeps the class token (vision_feature_select_strategy = "
                f'"{config.vision_feature_select_strategy}"), with which patches form no grid: '
                'expected "default"'
            )
        factor = round(1 / config.downsample_ratio)
        return Plan(
            feature_layer=layer,
            final_norm=layer == -1,
            keep_cls=False,
            prefix=None,
            connector=PixelShuffleMLP(factor=factor),
            image_id=config.image_token_id,
            media=(PlainTiles(),),
            preprocess=partial(Unsplit, shown=unsplit),
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        own = inner.multi_modal_projector
        return Modules(
            tower=inner.vision_tower,
            decoder=inner.language_model,
            head=model.get_output_embeddings(),
            connector=named({"norm": own.layer_norm, "first": own.linear_1, "last": own.linear_2}),
        )
