"""`llava`: LLaVA-1.5 and what was built like it, Transformers' `LlavaForConditionalGeneration`.

The features of one layer of a CLIP or SigLIP tower go through two linear layers with a GELU between
them, and stand in the text in place of `<image>` (Liu et al. 2023, arXiv 2310.03744, section 3).
The strategy "default" drops the first token, CLIP's class token; "full" keeps all.
"""

from __future__ import annotations

from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.mlp import MLP

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers that read pixels of one size, by their model types."""
LOGIT_OPTIONS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""What causal language models of Transformers do behind their head, and LLaVA's class does not."""


@RELEASED.register("llava")
class Llava:
    """LLaVA-1.5: patches of CLIP or SigLIP, an MLP, tokens in the text."""

    architecture = "LlavaForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import LlavaConfig
            >>> plan = Llava.plan(LlavaConfig())
            >>> plan.feature_layer, plan.prefix, plan.connector.depth, plan.image_id
            (-2, 1, 2, 32000)
        """
        tower = config.vision_config.model_type
        if tower not in TOWERS:
            raise ConfigError(
                f'this LLaVA has the vision tower "{tower}": expected one of {", ".join(TOWERS)}, '
                "whose images are all of one size"
            )
        layers = config.vision_feature_layer
        if not isinstance(layers, int):
            if len(layers) != 1:
                raise ConfigError(
                    f"this LLaVA reads the layers {list(layers)} of its vision tower side by side: "
                    "expected one layer, since a vision encoder here reads one"
                )
            [layers] = layers
        if config.projector_hidden_act != "gelu":
            raise ConfigError(
                f'this LLaVA\'s projector has the activation "{config.projector_hidden_act}": '
                'expected "gelu", which the connector mlp has'
            )
        for option in LOGIT_OPTIONS:
            value = getattr(config.text_config, option, None)
            if value not in (None, 1):
                raise ConfigError(
                    f"this LLaVA's language model ({config.text_config.model_type}) has {option} = "
                    f"{value}, which changes its logits and which {Llava.architecture} leaves out: "
                    "expected a language model whose logits are those of its head"
                )
        dropped = config.vision_feature_select_strategy == "default"
        return Plan(
            feature_layer=layers,
            keep_cls=not dropped,
            prefix=1 if dropped else None,  # SigLIP has no class token: its first patch goes
            connector=MLP(depth=2, bias=config.multimodal_projector_bias),
            image_id=config.image_token_id,
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        layers = {"0": inner.multi_modal_projector.linear_1}
        layers["2"] = inner.multi_modal_projector.linear_2
        return Modules(
            tower=inner.vision_tower,
            decoder=inner.language_model,
            head=model.get_output_embeddings(),
            connector={
                f"layers.{place}.{name}": tensor
                for place, layer in layers.items()
                for name, tensor in layer.state_dict().items()
            },
        )
