"""`blip-2`: BLIP-2 with a decoder, Transformers' `Blip2ForConditionalGeneration`.

A vision transformer, read behind its final norm and with its class token; a Q-Former, whose
queries read it; a linear map; a language model of the kind of OPT (Li et al. 2023, arXiv
2301.12597). Images stand before the prompt, even before the token that begins every text. An answer
ends with a line break, which the model's configuration calls its end of text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.qformer import EPSILON, QFormer


@RELEASED.register("blip-2")
class Blip2:
    """BLIP-2: a Q-Former between a vision transformer and a decoder."""

    architecture = "Blip2ForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import Blip2Config
            >>> plan = Blip2.plan(Blip2Config(image_token_index=50265))
            >>> plan.connector.queries, plan.final_norm, plan.keep_cls, plan.images_first
            (32, True, True, True)
        """
        text, reader = config.text_config, config.qformer_config
        if not config.use_decoder_only_language_model:
            raise ConfigError(
                f'this BLIP-2 has the language model "{text.model_type}", an encoder and a '
                "decoder: expected a decoder only; take one with OPT, such as "
                "Salesforce/blip2-opt-2.7b"
            )
        if config.image_token_id is None:
            raise ConfigError(
                "this BLIP-2 names no token for images (image_token_index): expected one, as its "
                "repository has today; fetch it again"
            )
        for name, expected in {
            "hidden_act": "gelu",
            "layer_norm_eps": EPSILON,
            "intermediate_size": 4 * reader.hidden_size,
        }.items():
            if getattr(reader, name) != expected:
                raise ConfigError(
                    f"this BLIP-2's Q-Former has {name} = {getattr(reader, name)}: expected "
                    f"{expected}, which the connector qformer has"
                )
        return Plan(
            feature_layer=-1,
            keep_cls=True,
            prefix=1,
            final_norm=True,
            connector=QFormer(
                queries=config.num_query_tokens,
                depth=reader.num_hidden_layers,
                heads=reader.num_attention_heads,
                width=reader.hidden_size,
                cross_every=reader.cross_attention_frequency,
            ),
            image_id=config.image_token_id,
            images_first=True,
            template="blip2",
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        language = model.language_model
        connector = {"queries": model.query_tokens[0].detach()}
        connector |= _named("input_norm", model.qformer.layernorm)
        for number, layer in enumerate(model.qformer.encoder.layer):
            at = f"layers.{number}"
            connector |= _sublayer(f"{at}.self_attention", layer.attention)
            if layer.has_cross_attention:
                connector |= _sublayer(f"{at}.cross_attention", layer.crossattention)
            connector |= _named(f"{at}.ffw.0", layer.intermediate_query.dense)
            connector |= _named(f"{at}.ffw.2", layer.output_query.dense)
            connector |= _named(f"{at}.norm", layer.output_query.LayerNorm)
        connector |= _named("projection", model.language_projection)
        return Modules(
            tower=model.vision_model,
            decoder=getattr(language, language.base_model_prefix),
            head=language.get_output_embeddings(),
            connector=connector,
            generation_config=language.generation_config,
        )


def _named(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module, by our name for it."""
    return {f"{name}.{own}": tensor for own, tensor in module.state_dict().items()}


def _sublayer(name: str, theirs: Any) -> dict[str, Tensor]:
    """One attention with its output map and norm; keys and values are one map here."""
    heads = theirs.attention
    context = {
        f"{name}.attention.context_projection.{kind}": torch.cat(
            [getattr(heads.key, kind).detach(), getattr(heads.value, kind).detach()]
        )
        for kind in ("weight", "bias")
    }
    return {
        **_named(f"{name}.attention.query_projection", heads.query),
        **context,
        **_named(f"{name}.attention.out_projection", theirs.output.dense),
        **_named(f"{name}.norm", theirs.output.LayerNorm),
    }
