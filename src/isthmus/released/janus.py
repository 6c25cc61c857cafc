"""`janus`: Janus and Janus-Pro as readers of images, `JanusForConditionalGeneration`.

The patches of a vision transformer like SigLIP's, behind its final norm, go through linear layers
with a GELU between them, and stand in the text between two tokens that begin and end an image (Wu
et al. 2024, arXiv 2410.13848, section 3.1). What draws images (`vqmodel` and the layers around it)
is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.mlp import MLP


@RELEASED.register("janus")
class Janus:
    """Janus: patches of a vision transformer, an MLP, tokens in the text."""

    architecture = "JanusForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import JanusConfig
            >>> config = JanusConfig(text_config={"model_type": "llama", "hidden_size": 2048})
            >>> plan = Janus.plan(config)
            >>> plan.connector, plan.final_norm, plan.image_id
            (MLP(depth=2, bias=True), True, 100581)
        """
        vision, text = config.vision_config, config.text_config
        for name, got, expected in (
            ("hidden_act", vision.hidden_act, "gelu"),
            ("projection_dim", vision.projection_dim, text.hidden_size),
            ("text_config.model_type", text.model_type, "llama"),
        ):
            if got != expected:
                raise ConfigError(f"this Janus has {name} = {got}: expected {expected}")
        return Plan(
            feature_layer=-1,
            keep_cls=False,
            prefix=0,
            final_norm=True,
            connector=MLP(depth=vision.depth),
            image_id=config.image_token_id,
            processed=_processed,
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        layers = [inner.aligner.fc1, *inner.aligner.hidden_layers]
        return Modules(
            tower=inner.vision_model,
            decoder=inner.language_model,
            head=model.get_output_embeddings(),
            connector={
                f"layers.{2 * place}.{name}": tensor
                for place, layer in enumerate(layers)
                for name, tensor in layer.state_dict().items()
            },
        )


def _processed(plan: Plan, processor: Any) -> Plan:
    """The tokens around an image, and the words that the processor puts before every text."""
    from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

    tokenizer = processor.tokenizer
    before, after = (
        tokenizer.convert_tokens_to_ids(token)
        for token in (processor.image_start_token, processor.image_end_token)
    )
    return replace(
        plan,
        before=(before,),
        after=(after,),
        heading=DEFAULT_SYSTEM_PROMPT if processor.use_default_system_prompt else "",
    )
