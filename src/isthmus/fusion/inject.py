"""Placing gated blocks inside a language model that stays as it is.

Forward pre-hooks on the chosen decoder layers run our blocks first. The blocks belong to the
fusion, so the language model's state-dict keys do not change, and nothing of it is replaced or
subclassed. The hooks last for one forward pass: `LanguageModel.hooked` registers and removes them,
and lends them to gradient checkpointing where that runs a layer a second time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
        language: The language model whose layers get the blocks.
        visual_width: Width of the visual tokens.
        tokens: Visual tokens M of one picture.

    Attributes:
        tokens_in_text: How often `<image>` is repeated: once, or M times where the visual tokens
            also stand in the text.
        blocks: The blocks by the number of the layer they stand before.

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

    def hook(self, language: LanguageModel, sight: Sight) -> list[RemovableHandle]:
        """Puts images in sight of a language model until the hooks are removed.

        Args:
            language: The language model that the fusion was built for, or a copy of it.
            sight: Who sees what.

        Returns:
            The handles of the hooks.
        """
        layers = language.layers
        before = partial(self._before_model, sight)
        return [
            language.model.register_forward_pre_hook(before, with_kwargs=True),
            *(
                layers[int(name)].register_forward_pre_hook(
                    partial(self._before_layer, sight, int(name), block), with_kwargs=True
                )
                for name, block in self.blocks.items()
            ),
        ]

    def _before_model(self, sight: Sight, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Finds out which tokens of the prompt, or after it, this pass is about."""
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = args[0] if args else kwargs["input_ids"]
        cache = states_in(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        decoding = past >= sight.prompt.shape[1]
        if decoding and sight.keep and self.sees == "last" and sight.prompt.shape[1] > 1:
            sight.narrow()
        sight.advance(rows=tokens.shape[0], length=tokens.shape[1], past=past)

    @staticmethod
    def _before_layer(
        sight: Sight, number: int, block: nn.Module, module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Runs a block on the hidden states of a layer."""
        if args:
            return (block(args[0], sight, number), *args[1:]), kwargs
        hidden: Tensor = block(kwargs["hidden_states"], sight, number)
        return args, {**kwargs, "hidden_states": hidden}
