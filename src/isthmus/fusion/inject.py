"""Placing gated blocks inside a language model that stays as it is.

Forward pre-hooks on the chosen decoder layers run our blocks first. The blocks belong to the
fusion, so the language model's state-dict keys do not change, and nothing of it is replaced or
subclassed.

Gradient checkpointing: newer Transformers recompute a layer's `forward`, outside of which the
hooks stay; 5.17 recomputes its `__call__`, and the hooks run a second time during the backward
pass. So what the pictures show outlives the forward pass, until the language model is next called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isthmus.backbones.language import LanguageModel
from isthmus.backbones.states import states_in
from isthmus.config import CrossAttention
from isthmus.errors import ConfigError
from isthmus.fusion.cross_attention import GatedCrossAttentionBlock
from isthmus.fusion.inline import InlineFusion
from isthmus.fusion.sight import Sight


class CrossAttentionFusion(nn.Module):
    """Gated cross-attention blocks before every n-th decoder layer (Flamingo).

    Args:
        config: Placement and size of the blocks.
        language: The language model whose layers are hooked.
        visual_width: Width of the visual tokens.
        tokens: Visual tokens M of one picture.

    Attributes:
        tokens_in_text: How often `<image>` is repeated: once, or M times where the visual tokens
            also stand in the text.
        blocks: The blocks by the number of the layer they stand before.
        sight: Who sees what in the current batch; None lets the bare language model run.

    Raises:
        ConfigError: If no layer would get a block.
    """

    def __init__(
        self, config: CrossAttention, language: LanguageModel, visual_width: int, tokens: int
    ) -> None:
        super().__init__()
        if config.inline and visual_width != language.width:
            raise ConfigError(
                f"fusion: inline=true needs visual_width={language.width}, the language model's; "
                f"got {visual_width}"
            )
        self.tokens_in_text = tokens if config.inline else 1
        self.inline = InlineFusion(tokens) if config.inline else None
        layers = language.layers
        chosen = [
            i for i in range(config.start, len(layers)) if (i + config.offset) % config.every == 0
        ]
        if not chosen:
            raise ConfigError(
                f"fusion: no decoder layer of {len(layers)} gets a block with "
                f"every={config.every}, offset={config.offset}, start={config.start}"
            )
        self.blocks = nn.ModuleDict(
            {str(i): GatedCrossAttentionBlock(language.width, visual_width, config) for i in chosen}
        )
        self.sees = config.sees
        self.sight: Sight | None = None
        self._shown = False
        language.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        for i in chosen:
            layers[i].register_forward_pre_hook(self._before_layer(i), with_kwargs=True)

    def show(self, sight: Sight | None) -> None:
        """Puts pictures in sight of the coming calls of the language model."""
        self.sight, self._shown = sight, True

    def hide(self) -> None:
        """Ends `show`; a backward pass may still recompute layers that read the pictures."""
        self._shown = False
        if not torch.is_grad_enabled():
            self.sight = None

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Finds out which tokens of the prompt, or after it, this pass is about."""
        if not self._shown:
            self.sight = None
        if self.sight is None:
            return
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = args[0] if args else kwargs["input_ids"]
        cache = states_in(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        decoding = past >= self.sight.prompt.shape[1]
        if decoding and self.sight.keep and self.sees == "last" and self.sight.prompt.shape[1] > 1:
            self.sight.narrow()
        self.sight.advance(rows=tokens.shape[0], length=tokens.shape[1], past=past)

    def _before_layer(self, number: int) -> Any:
        """The hook that runs a block on the hidden states of a layer."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if self.sight is None:
                return None
            block = self.blocks[str(number)]
            if args:
                return (block(args[0], self.sight, number), *args[1:]), kwargs
            hidden: Tensor = block(kwargs["hidden_states"], self.sight, number)
            return args, {**kwargs, "hidden_states": hidden}

        return hook
