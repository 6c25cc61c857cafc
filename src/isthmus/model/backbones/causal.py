"""A decoder and a head as a causal language model, also where Transformers has no class for it.

Transformers' vision-language models of some families have a decoder of their own that never stands
alone. This is the part of such a model that `LanguageModel` takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from isthmus.errors import ConfigError
from isthmus.model.backbones.states import as_states

DECODERS = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
"""Decoders without a causal language model of their own, by their model types."""


class CausalDecoder(PreTrainedModel, GenerationMixin):
    """A decoder of Transformers with a linear head.

    Args:
        config: Of the decoder.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        use_cache: Any = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> Any:
        """As the causal language models of Transformers; `past_key_values` is an older name."""
        states = past_key_values if cache is None else cache
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **as_states(self.model, states),
            **options,
        )
        hidden = out.last_hidden_state
        [name] = as_states(self.model, None)
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{name: getattr(out, name, None)},
        )


def causal_model(decoder: Any, head: nn.Module, generation_config: Any) -> nn.Module:
    """Transformers' causal language model of a decoder and a head that are there.

    Args:
        decoder: A decoder of Transformers without its head, such as a `LlamaModel`.
        head: Hidden states to logits.
        generation_config: Of the released model.

    Raises:
        ConfigError: If Transformers has no such class for the decoder.
    """
    kind = decoder.config.model_type
    try:
        with torch.device("meta"):  # no weights: the decoder and the head take their place
            model: Any = (
                CausalDecoder(decoder.config)
                if kind in DECODERS
                else AutoModelForCausalLM.from_config(decoder.config, trust_remote_code=False)
            )
    except ValueError as error:
        raise ConfigError(
            f'Transformers has no causal language model of the type "{kind}", whose decoder this '
            "model has: expected one of Llama, Qwen 2, Mistral or another that stands alone"
        ) from error
    inner = getattr(model, model.base_model_prefix)
    if type(inner) is not type(decoder):
        raise ConfigError(
            f"the decoder is a {type(decoder).__name__}: expected {type(inner).__name__}, which "
            f"{type(model).__name__} has"
        )
    setattr(model, model.base_model_prefix, decoder)
    model.set_output_embeddings(head)
    model.config, model.generation_config = decoder.config, generation_config
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if left:
        raise ConfigError(
            f"{type(model).__name__} has more than a decoder and a head: {', '.join(left[:3])}"
        )
    return model.eval()
