"""`paligemma`: PaliGemma and PaliGemma 2, Transformers' `PaliGemmaForConditionalGeneration`.

A SigLIP tower behind its final norm and a linear map. The whole prompt, images and text, sees
itself, positions begin with 1, and the answer is written token by token (Beyer et al. 2024, arXiv
2407.07726, section 3.1). So what a prompt begins with depends on how it goes on: its states are
never shared with another prompt's, and only the visual tokens of images are kept.
"""

from __future__ import annotations

from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.linear import Linear
from isthmus.model.reading import Reading
from isthmus.prompts.prefix_template import NAME

TOWER = "siglip_vision_model"


@RELEASED.register("paligemma")
class PaliGemma:
    """PaliGemma: SigLIP, a linear map, and a prompt that sees itself."""

    architecture = "PaliGemmaForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import PaliGemmaConfig
            >>> plan = PaliGemma.plan(PaliGemmaConfig())
            >>> plan.reading.sees, plan.reading.first, plan.template
            ('prompt', 1, 'paligemma')
        """
        tower = config.vision_config.model_type
        if tower != TOWER:
            raise ConfigError(f'this PaliGemma has the vision tower "{tower}": expected "{TOWER}"')
        return Plan(
            feature_layer=-1,
            final_norm=True,
            keep_cls=False,
            prefix=None,
            connector=Linear(),
            image_id=config.image_token_id,
            reading=Reading("prompt", first=1),
            template=NAME,
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        decoder = inner.language_model
        # Said of the prompt, which gets a mask. Without a mask it would hold of answers too.
        decoder.config.use_bidirectional_attention = False
        for layer in decoder.layers:
            layer.self_attn.is_causal = True
        return Modules(
            tower=inner.vision_tower,
            decoder=decoder,
            head=model.get_output_embeddings(),
            connector={
                f"projection.{name}": tensor
                for name, tensor in inner.multi_modal_projector.linear.state_dict().items()
            },
        )
