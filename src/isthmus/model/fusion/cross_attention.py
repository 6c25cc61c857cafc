"""`cross_attention`: gated blocks that read images before frozen decoder layers.

Flamingo, Alayrac et al. 2022, section 2.2 and figure 4 (`GATED XATTN-DENSE`):

    y = y + tanh(a) * attention(q = y, kv = visual tokens)
    y = y + tanh(b) * ffw(y)

With a = b = 0 the block changes nothing. A token that sees no image passes through untouched
whatever the gates are, so a prompt without images is always the bare language model's.

Forward pre-hooks on the chosen decoder layers run the blocks first. The blocks belong to the
fusion, so the language model's state-dict keys do not change, and nothing of it is replaced or
subclassed. The hooks last for one forward pass: `LanguageModel.hooked` registers and removes them,
and lends them to gradient checkpointing where that runs a layer a second time.

Letters as in `sight`: B rows, L tokens, P images, M visual tokens, S segments, W their length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.config.base import Config, Count, NotNegative, Range
from isthmus.config.model import Activation
from isthmus.config.registry import FUSIONS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention, feed_forward
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion.adapter import Adapter
from isthmus.model.fusion.inline import fill
from isthmus.model.fusion.sight import Sight, follow, sight_of
from isthmus.model.fusion.visual import Visual
from isthmus.model.layout import IMAGE, Layout, filled

FP32 = 4
TOY_LAYERS, TOY_WIDTH = 4, 64
"""Decoder layers of "tiny-lm" and their width."""


@FUSIONS.register("cross_attention")
@dataclass(frozen=True, kw_only=True)
class CrossAttention(Config):
    """Deep fusion: tanh-gated cross-attention before decoder layers (Flamingo, section 2.2)."""

    every: Count = 4
    """A block stands before layer i where (i + offset) % every == 0."""
    offset: NotNegative = 0
    """0 is Flamingo's placement, 1 is OpenFlamingo's."""
    start: NotNegative = 0
    """The first layer that may have a block; a later start shortens the backward pass."""
    heads: Count = 8
    """Attention heads of a block."""
    head_dim: Count = 64
    """Width of a head."""
    ffw_mult: Count = 4
    """Hidden width of the feed-forward, as a multiple of the language model's."""
    activation: Activation = "gelu"
    """Of the feed-forward."""
    sees: Literal["last", "previous"] = "last"
    """A token attends to the last image before it, or to all images before it."""
    gate: Annotated[float, Range()] = 0.0
    """Initial value of both gates before tanh. At 0, Flamingo's, the language model is unchanged
    and only the gates learn at first. With another value the last map of each sublayer starts at
    zero instead: the language model is unchanged too, and the maps learn from the first step."""
    inline: bool = False
    """Whether visual tokens also stand in the text, as in NVLM-H (Dai et al. 2024)."""
    visual_width: Count | None = None
    """Width of the visual tokens; None keeps the vision encoder's."""
    adapter: Adapter | None = None
    """Adapters of the language model that act where an image is in sight; None for none."""

    @property
    def added(self) -> str:
        """Blocks."""
        return "layers of gated cross-attention"

    def width(self, language_width: int, vision_width: int) -> int:
        """The vision encoder's (Flamingo), the language model's for inline tokens, or as set."""
        return self.visual_width or (language_width if self.inline else vision_width)

    def build(self, language: LanguageModel, visual_width: int) -> CrossAttentionFusion:
        """The module for the layers of a language model."""
        return CrossAttentionFusion(self, language, visual_width)

    def toy(self) -> CrossAttention:
        """The same in the few layers of "tiny-lm"; `every` stays if a block then has a layer."""
        start = min(self.start, TOY_LAYERS // 2)
        stands = any((i + self.offset) % self.every == 0 for i in range(start, TOY_LAYERS))
        return replace(
            self,
            every=self.every if stands else 1,
            start=start,
            heads=2,
            head_dim=8,
            ffw_mult=min(self.ffw_mult, 2),
            visual_width=None if self.visual_width is None else TOY_WIDTH,
            adapter=None if self.adapter is None else self.adapter.toy(),
        )


class GatedCrossAttentionBlock(nn.Module):
    """One gated block.

    Args:
        width: Width D of the language model.
        visual_width: Width of the visual tokens.
        config: Heads, activation, initial gate, and which images a token sees.

    Attributes:
        attention_gate, ffw_gate: (1,), before tanh.
    """

    def __init__(self, width: int, visual_width: int, config: CrossAttention) -> None:
        super().__init__()
        self.sees = config.sees
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(
            width, visual_width, heads=config.heads, head_dim=config.head_dim
        )
        self.ffw = feed_forward(width, mult=config.ffw_mult, activation=config.activation)
        self.attention_gate = nn.Parameter(torch.full((1,), float(config.gate)))
        self.ffw_gate = nn.Parameter(torch.full((1,), float(config.gate)))
        if config.gate:
            nn.init.zeros_(self.attention.out_projection.weight)
            nn.init.zeros_(cast(nn.Linear, self.ffw[-1]).weight)

    def forward(self, hidden: Tensor, sight: Sight, key: int) -> Tensor:
        """Adds what the images say to the hidden states that see one.

        Args:
            hidden: (B, L, D) states on their way into the decoder layer.
            sight: Who sees what; `sight.advance` has been called for this pass.
            key: Name under which this block's K and V are kept.

        Returns:
            (B, L, D) in the precision of `hidden`.
        """
        if sight.segments is None:
            return hidden
        keys, values = self._keys_values(sight, key)
        if self.sees == "last":
            return self._read_last(hidden, sight, keys, values)
        return self._read_previous(hidden, sight, keys, values)

    def _keys_values(self, sight: Sight, key: int) -> tuple[Tensor, Tensor]:
        """K and V (P, H, M, D_head) of every image, projected once."""
        if key in sight.keys_values:
            return sight.keys_values[key]
        keys_values = self.attention.project_context(sight.visual)
        if sight.keep:
            sight.keys_values[key] = keys_values
        return keys_values

    def _gated(self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Both gated sublayers over (S, W, D)."""
        read = self.attention.attend(self.norm(states), keys, values, mask)
        states = states + (self.attention_gate.tanh() * read).to(states.dtype)
        return states + (self.ffw_gate.tanh() * self.ffw(states)).to(states.dtype)

    def _read_last(self, hidden: Tensor, sight: Sight, keys: Tensor, values: Tensor) -> Tensor:
        """Each segment attends to its own image; no mask where all are of one length."""
        segments = sight.segments
        assert segments is not None
        flat = hidden.flatten(0, 1)
        mask = None if sight.valid is None else sight.valid[segments.image][:, None, None]
        states = self._gated(
            flat[segments.index], keys[segments.image], values[segments.image], mask
        )
        valid = segments.valid
        place = segments.index[valid]
        length = hidden.shape[1]
        # not through `flat`: FSDP2 wants a tensor of its own, no view
        return hidden.index_put((place // length, place % length), states[valid])

    def _read_previous(self, hidden: Tensor, sight: Sight, keys: Tensor, values: Tensor) -> Tensor:
        """Each token attends to all images of its row up to its own, as one sequence."""
        image, mask, blind = self._previous(sight, keys.shape[2])
        keys, values = row_context(keys, image), row_context(values, image)
        return torch.where(blind[..., None], hidden, self._gated(hidden, keys, values, mask))

    @staticmethod
    def _previous(sight: Sight, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """The images (B, K) of each row, what each token sees of them, and which see nothing.

        Args:
            sight: Who sees what.
            tokens: Visual tokens M of each image, padding included.

        Returns:
            Numbers of images (B, K), a mask (B, 1, L, K * M), and (B, L) bool.
        """
        seen, begin = sight.seen, sight.seen_from
        assert seen is not None
        assert begin is not None
        # The row's context runs from its first image, whatever sample of the row that is of
        first = begin[:, :1]
        ordinal = seen - first  # (B, L): 0 for the row's first image
        depth = int(ordinal.max()) + 1
        numbers = torch.arange(depth, device=seen.device)
        image = (first + numbers).clamp(max=len(sight.visual) - 1)
        allowed = numbers <= ordinal[..., None]  # (B, L, K)
        allowed &= numbers >= (begin - first)[..., None]
        blind = seen < 0
        allowed = allowed | blind[..., None]  # never an empty softmax; undone by the caller
        mask = allowed.repeat_interleave(tokens, dim=2)[:, None]
        if sight.valid is not None:
            mask = mask & sight.valid[image].flatten(1)[:, None, None]
        return image, mask, blind

    def weights(self, hidden: Tensor, sight: Sight, key: int) -> Tensor:
        """The attention weights with which `forward` reads the images.

        Args:
            hidden: As in `forward`.
            sight: As in `forward`.
            key: As in `forward`.

        Returns:
            (B, L, H, P, M) in float32: of every token's head over the visual tokens of all images.
            They sum to 1 over the last two where a token sees an image, and to 0 where it sees
            none.
        """
        rows, length = hidden.shape[:2]
        heads, (images, tokens) = self.attention.heads, sight.visual.shape[:2]
        shape = (rows, length, heads, images, tokens)
        found = hidden.new_zeros(shape, dtype=torch.float32)
        segments = sight.segments
        if segments is None:
            return found
        keys, _ = self._keys_values(sight, key)
        if self.sees == "last":
            mask = None if sight.valid is None else sight.valid[segments.image][:, None, None]
            queries = self.norm(hidden.flatten(0, 1)[segments.index])
            own = self.attention.weights(queries, keys[segments.image], mask).transpose(1, 2)
            which = segments.image[:, None].expand_as(segments.valid)[segments.valid]
            found.flatten(0, 1)[segments.index[segments.valid], :, which] = own[segments.valid]
            return found
        image, mask, blind = self._previous(sight, tokens)
        own = self.attention.weights(self.norm(hidden), row_context(keys, image), mask)
        own = own.masked_fill(blind[:, None, :, None], 0).view(*own.shape[:3], -1, tokens)
        for row in range(rows):
            # the numbers of images that a row does not have are clamped: nothing is read there
            found[row].index_add_(2, image[row], own[row].transpose(0, 1))
        return found


def row_context(states: Tensor, image: Tensor) -> Tensor:
    """Keys or values (P, H, M, d) of the images (B, K) of each row, as one: (B, H, K * M, d)."""
    return states[image].transpose(1, 2).flatten(2, 3)


class CrossAttentionFusion(nn.Module):
    """Gated cross-attention blocks before every n-th decoder layer (Flamingo).

    Args:
        config: Placement and size of the blocks.
        language: The language model whose layers get the blocks.
        visual_width: Width of the visual tokens.

    Attributes:
        visual_width, in_text, sees, blocks, adapter: As in `Fusion`.

    Raises:
        ConfigError: If no layer would get a block.
    """

    sees: Literal["nothing", "last", "previous"]

    def __init__(self, config: CrossAttention, language: LanguageModel, visual_width: int) -> None:
        super().__init__()
        if config.inline and visual_width != language.width:
            raise ConfigError(
                f"fusion: inline=true needs visual_width={language.width}, the language model's; "
                f"got {visual_width}"
            )
        self.config = config
        self.visual_width = visual_width
        self.in_text = config.inline
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
        self.adapter = None if config.adapter is None else config.adapter.build(language)

    def layout(self, tokens: int) -> Layout:
        """`<image>` once, or a hole for each visual token where they also stand in the text."""
        return filled(tokens) if self.in_text else Layout((IMAGE,))

    def embed(self, embeddings: Tensor, is_image: Tensor, visual: Visual) -> Tensor:
        """Fills the holes where visual tokens also stand in the text."""
        return fill(embeddings, is_image, visual) if self.in_text else embeddings

    def look(self, visual: Visual, seen: Tensor, begin: Tensor, *, keep: bool) -> Sight | None:
        """Who sees what."""
        return sight_of(visual, seen, begin, keep=keep)

    def project(self, visual: Tensor) -> object:
        """K and V of each block."""
        blocks = (cast(GatedCrossAttentionBlock, block) for block in self.blocks.values())
        return [block.attention.project_context(visual) for block in blocks]

    def gates(self) -> dict[str, dict[str, nn.Parameter]]:
        """Both gates of each block."""
        blocks = {n: cast(GatedCrossAttentionBlock, block) for n, block in self.blocks.items()}
        return {n: {"attention": b.attention_gate, "ffw": b.ffw_gate} for n, b in blocks.items()}

    def activation_bytes(self, tokens: int, visual_tokens: int, value: int) -> int:
        """What a gated block keeps, whose maps are all trained, times the blocks.

        With D the language model's width, A the inner width of the attention and mult =
        `ffw_mult`, it is 4 * 4 D + value (2 D + 3 A + 2 mult D) for one token. For one visual
        token it is value * 4 A: K and V, and their copies by segment.
        """
        width = cast(GatedCrossAttentionBlock, next(iter(self.blocks.values()))).norm.weight.numel()
        inner, mult = self.config.heads * self.config.head_dim, self.config.ffw_mult
        token = 4 * FP32 * width + value * ((2 + 2 * mult) * width + 3 * inner)
        return len(self.blocks) * (token * tokens + value * 4 * inner * visual_tokens)

    def hook(self, language: LanguageModel, sight: Sight) -> list[RemovableHandle]:
        """Puts images in sight of a language model until the hooks are removed.

        Args:
            language: The language model that the fusion was built for, or a copy of it.
            sight: Who sees what.

        Returns:
            The handles of the hooks.
        """
        layers = language.layers
        before = partial(follow, sight, narrow=self.sees == "last")
        return [
            language.model.register_forward_pre_hook(before, with_kwargs=True),
            *(
                layers[int(name)].register_forward_pre_hook(
                    partial(self._before_layer, sight, int(name), block), with_kwargs=True
                )
                for name, block in self.blocks.items()
            ),
        ]

    @staticmethod
    def _before_layer(
        sight: Sight, number: int, block: nn.Module, module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Runs a block on the hidden states of a layer."""
        if args:
            return (block(args[0], sight, number), *args[1:]), kwargs
        hidden: Tensor = block(kwargs["hidden_states"], sight, number)
        return args, {**kwargs, "hidden_states": hidden}
