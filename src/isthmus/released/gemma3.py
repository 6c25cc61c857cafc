"""`gemma3`: Gemma 3 with images, Transformers' `Gemma3ForConditionalGeneration`.

A SigLIP tower behind its final norm, 4 x 4 patches averaged, an RMSNorm and a linear map. The
tokens of an image see their whole image, in layers that slide within their window (Gemma Team 2025,
arXiv 2503.19786).
"""

from __future__ import annotations

from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.norm_pool import NormPool
from isthmus.model.reading import Reading

TOWER = "siglip_vision_model"


@RELEASED.register("gemma3")
class Gemma3:
    """Gemma 3: SigLIP, pooled, tokens in the text that see their image."""

    architecture = "Gemma3ForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Gemma3Config
            >>> plan = Gemma3.plan(Gemma3Config())
            >>> plan.connector.tokens, plan.reading.sees, plan.final_norm
            (256, 'image', True)
        """
        tower, text = config.vision_config.model_type, config.text_config
        if tower != TOWER:
            raise ConfigError(f'this Gemma 3 has the vision tower "{tower}": expected "{TOWER}"')
        if text.final_logit_softcapping is not None:
            raise ConfigError(
                f"this Gemma 3 has final_logit_softcapping = {text.final_logit_softcapping}, which "
                f"{Gemma3.architecture} leaves out: expected none"
            )
        if text.use_bidirectional_attention:
            raise ConfigError(
                "this Gemma 3 reads text in both directions (use_bidirectional_attention), as an "
                "encoder does: expected one that writes"
            )
        return Plan(
            feature_layer=-1,
            final_norm=True,
            keep_cls=False,
            prefix=None,
            connector=NormPool(
                tokens=config.mm_tokens_per_image, eps=config.vision_config.layer_norm_eps
            ),
            image_id=config.image_token_id,
            reading=Reading("image"),
            around=(("\n\n", config.boi_token_id), (config.eoi_token_id, "\n\n")),
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        projector = inner.multi_modal_projector
        return Modules(
            tower=inner.vision_tower,
            decoder=inner.language_model,
            head=model.get_output_embeddings(),
            connector={
                "scale": projector.mm_soft_emb_norm.weight.detach(),
                "projection.weight": projector.mm_input_projection_weight.detach().T,
            },
        )
