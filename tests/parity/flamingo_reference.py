"""OpenFlamingo as a reference: its arithmetic, written down plainly, and its names of tensors.

`Plain` is our own, with dense scores of every token against every image. `Published` is the package
open-flamingo 2.0.1 itself, where it is installed. Both are joined to a language model of
Transformers whose tables have the new tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HEADS, HEAD_DIM = 8, 64


def grown(language: Any, words: int, added: int) -> Any:
    """A language model whose tables end with rows of new tokens, behind so many words."""
    language.resize_token_embeddings(words + added, mean_resizing=False)
    with torch.no_grad():
        for module in {language.get_input_embeddings(), language.get_output_embeddings()}:
            module.weight[words:] = torch.randn_like(module.weight[words:]) * 0.2
    return language.eval()


def kept(name: str, parameter: Tensor, language: Any) -> str | None:
    """What its training calls a parameter of the language model that it saves; None if it does not.

    It saves what is trained, and whatever has "embed" in its name.
    """
    if type(language).__name__ == "GPTNeoXForCausalLM":  # as it was in Transformers 4
        name = name.replace("lm_head.", "embed_out.")
    trained = parameter is language.get_input_embeddings().weight
    return name if trained or "embed" in name else None


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


def read(maps: Any, queries: Tensor, context: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Attention of (B, Q, D) over (B, C, D_context), heads apart."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    keys, values = maps.to_kv(context).chunk(2, dim=-1)
    scores = split(maps.to_q(queries)) @ split(keys).transpose(2, 3) / HEAD_DIM**0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], -torch.finfo(scores.dtype).max)
    weights = scores.softmax(dim=-1)
    if allowed is not None:  # who may look nowhere reads nothing
        weights = weights * allowed.any(dim=-1)[:, None, :, None]
    return maps.to_out((weights @ split(values)).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """The maps of one attention, under OpenFlamingo's names."""

    def __init__(self, width: int, context: int, *norms: str) -> None:
        super().__init__()
        for name in norms:
            self.add_module(name, nn.LayerNorm(width))
        self.to_q = nn.Linear(width, HEADS * HEAD_DIM, bias=False)
        self.to_kv = nn.Linear(context, 2 * HEADS * HEAD_DIM, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_DIM, width, bias=False)


class Perceiver(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(64, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Attention(width, width, "norm_media", "norm_latents"), feed_forward(width)]
            )
            for _ in range(6)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        latents = self.latents.expand(len(features), -1, -1)
        for attention, ff in self.layers:  # type: ignore[misc]
            queries = attention.norm_latents(latents)
            context = torch.cat([attention.norm_media(features), queries], dim=1)
            latents = latents + read(attention, queries, context)
            latents = latents + ff(latents)
        return self.norm(latents)


class Block(nn.Module):
    def __init__(self, width: int, visual: int) -> None:
        super().__init__()
        self.attn = Attention(width, visual, "norm")
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, media: Tensor, seen: Tensor) -> Tensor:
        """Hidden (B, L, D), media (B, T, M, D_visual), seen (B, L) images up to each token."""
        images = torch.arange(media.shape[1]).repeat_interleave(media.shape[2]) + 1
        allowed = seen[:, :, None] == images
        reading = read(self.attn, self.attn.norm(hidden), media.flatten(1, 2), allowed)
        hidden = hidden + self.attn_gate.tanh() * reading
        return hidden + self.ff_gate.tanh() * self.ff(hidden)


def scrambled(module: nn.Module) -> None:
    """Norms of 1, biases of 0 and closed gates would hide mix-ups."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


class Plain:
    """The reference of our own."""

    def __init__(self, language: Any, encoder: Any, layers: str, every: int, image: int) -> None:
        self.language, self.encoder, self.layers, self.image = language, encoder, layers, image
        width = language.get_input_embeddings().weight.shape[1]
        visual = encoder.shape.width
        self.perceiver = Perceiver(visual)
        count = len(language.get_submodule(layers))
        self.blocks = {i: Block(width, visual) for i in range(count) if (i + 1) % every == 0}
        for module in (self.perceiver, *self.blocks.values()):
            scrambled(module)

    def state(self, version: int = 2) -> OrderedDict[str, Tensor]:
        """What its `checkpoint.pt` holds, in the layout of a version."""
        found = {f"perceiver.{n}": t for n, t in self.perceiver.state_dict().items()}
        for i, block in self.blocks.items():
            at = {1: f"gated_cross_attn_layers.{i}", 2: f"{self.layers}.{i}.gated_cross_attn_layer"}
            for name, tensor in block.state_dict().items():
                found[f"lang_encoder.{at[version]}.{name}"] = tensor
        for name, parameter in self.language.named_parameters():
            if called := kept(name, parameter, self.language):
                found[f"lang_encoder.{called}"] = parameter.detach()
        return OrderedDict(found)

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """(B, L, V) of ids (B, L) and images (B, T, 3, H, W)."""
        media = self.perceiver(self.encoder(images.flatten(0, 1))).unflatten(0, images.shape[:2])
        seen = (ids == self.image).cumsum(dim=1)
        handles = []
        for number, block in self.blocks.items():

            def before(module: Any, args: Any, kwargs: Any, block: Any = block) -> Any:
                if args:
                    return (block(args[0], media, seen), *args[1:]), kwargs
                hidden = block(kwargs["hidden_states"], media, seen)
                return args, {**kwargs, "hidden_states": hidden}

            layer = self.language.get_submodule(f"{self.layers}.{number}")
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        try:
            logits: Tensor = self.language(input_ids=ids, attention_mask=mask).logits
            return logits
        finally:
            for handle in handles:
                handle.remove()


def says(
    reference: Plain | Published,
    ids: list[int],
    images: Tensor,
    end: int,
    never: list[int],
    new: int,
) -> list[int]:
    """Greedy tokens behind a prompt, up to the end of a chunk, a whole pass for each."""
    row = list(ids)
    for _ in range(new):
        now = torch.tensor([row])
        logits = reference.logits(now, torch.ones_like(now), images[None])[0, -1]
        logits[never] = float("-inf")
        row.append(int(logits.argmax()))
        if row[-1] == end:
            break
    return row[len(ids) :]


class _Visual(nn.Module):
    """A vision encoder as OpenFlamingo calls it: what matters is the second thing it returns."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[None, Tensor]:
        return None, self.encoder(pixels)


class _Clip(nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.visual = _Visual(encoder)


class Published:
    """The package itself."""

    def __init__(self, language: Any, encoder: Any, layers: str, every: int, image: int) -> None:
        reason = "open-flamingo 2.0.1 is not installed (pip install --no-deps open-flamingo==2.0.1)"
        options: dict[str, Any] = {"reason": reason, "exc_type": ImportError}
        flamingo = pytest.importorskip("open_flamingo.src.flamingo", **options)
        lm = pytest.importorskip("open_flamingo.src.flamingo_lm", **options)
        utils = pytest.importorskip("open_flamingo.src.utils", **options)
        utils.extend_instance(language, lm.FlamingoLMMixin)
        language.set_decoder_layers_attr_name(layers)
        self.model = flamingo.Flamingo(
            _Clip(encoder), language, image - 1, image, encoder.shape.width, every
        )
        self.model.requires_grad_(False)
        for part in (self.model.perceiver, language.gated_cross_attn_layers):
            scrambled(part)
            part.requires_grad_(True)
        language.get_input_embeddings().requires_grad_(True)
        self.model.eval()

    def state(self, version: int = 2) -> OrderedDict[str, Tensor]:
        """What its training saves."""
        language = self.model.lang_encoder
        strip = ("perceiver.", "gated_cross_attn_layer.")
        found = OrderedDict(
            (name, tensor)
            for name, tensor in self.model.state_dict().items()
            if any(part in name for part in strip)
        )
        for name, parameter in language.named_parameters():
            if called := kept(name, parameter, language):
                found[f"lang_encoder.{called}"] = parameter.detach()
        return found

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """As its `forward`, which gives the language model an argument that is deprecated."""
        self.model._encode_vision_x(images[:, :, None])
        self.model._condition_media_locations(ids)
        logits: Tensor = self.model.lang_encoder(input_ids=ids, attention_mask=mask).logits
        self.model.lang_encoder.clear_conditioned_layers()
        return logits
