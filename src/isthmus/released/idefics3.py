"""`idefics3` and `smolvlm`: Idefics3 and SmolVLM, Transformers' classes of these names.

A SigLIP behind its final norm reads tiles; four (or nine, or more) neighbouring patches become one
visual token by one linear map (Laurençon et al. 2024, arXiv 2408.12637; Marafioti et al. 2025,
arXiv 2504.05299). Tiles stand in the text row by row, the whole image last.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.pixel_shuffle import PixelShuffle
from isthmus.model.media.grid_tiles import GridTiles, unsplit
from isthmus.model.media.tiles import Unsplit
from isthmus.released.llava import refuse_logit_options


@RELEASED.register("idefics3")
class Idefics3:
    """Idefics3: tiles of SigLIP, pixel shuffle, words around each tile."""

    architecture = "Idefics3ForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Idefics3Config
            >>> plan = Idefics3.plan(Idefics3Config())
            >>> plan.feature_layer, plan.final_norm, plan.connector.factor, plan.media
            (-1, True, 2, (GridTiles(max_tiles=None),))
        """
        return grid_plan(config, "Idefics3", Idefics3.architecture)

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        return grid_parts(model)


@RELEASED.register("smolvlm")
class SmolVLM:
    """SmolVLM: as Idefics3, smaller."""

    architecture = "SmolVLMForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import SmolVLMConfig
            >>> SmolVLM.plan(SmolVLMConfig()).image_id
            128257
        """
        return grid_plan(config, "SmolVLM", SmolVLM.architecture)

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        return grid_parts(model)


def grid_plan(config: Any, name: str, architecture: str) -> Plan:
    """The plan of either.

    Raises:
        ConfigError: If its language model changes logits behind its head.
    """
    refuse_logit_options(config, name, architecture)
    return Plan(
        feature_layer=-1,
        final_norm=True,
        keep_cls=False,
        prefix=None,
        connector=PixelShuffle(factor=config.scale_factor),
        image_id=config.image_token_id,
        media=(GridTiles(),),
        preprocess=partial(Unsplit, shown=unsplit),
    )


def grid_parts(model: Any) -> Modules:
    """The modules of either."""
    inner = model.model
    return Modules(
        tower=inner.vision_model,
        decoder=inner.text_model,
        head=model.get_output_embeddings(),
        connector={"projection.weight": inner.connector.modality_projection.proj.weight},
    )
