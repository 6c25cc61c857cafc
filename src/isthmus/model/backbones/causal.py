"""A decoder and a head as a causal language model, where Transformers has no class for the two.

Transformers' vision-language models of some families have a decoder of their own that never stands
alone. This is the part of such a model that `LanguageModel` takes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

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
