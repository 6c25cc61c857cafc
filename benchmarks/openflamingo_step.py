"""OpenFlamingo 2.0.1's model and training step around given features, for `train_step.py`.

The step is that of `train_one_epoch` in `open_flamingo/train/train_utils.py`, the optimiser's
groups are those of `open_flamingo/train/train.py`, and images are filled up as in
`open_flamingo/train/data.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import openflamingo
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.config.model import TrainConfig
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.connectors.resampler import PerceiverResampler, ResamplerLayer
from isthmus.model.fusion.cross_attention import GatedCrossAttentionBlock

WIDTH, EVERY = 1024, 4
MOST_IMAGES = 6
IGNORED, PAD = -100, 0
CONFIG = TrainConfig(lr=1e-4, weight_decay=0.1, clip=1.0)


@dataclass(frozen=True)
class Samples:
    """One batch of one data set, as it comes from the loader.

    Attributes:
        ids: (B, L), padded on the right.
        mask: (B, L), 0 at padding.
        features: (B, T, N, D) of T images a row.
        documents: Whether rows are documents, whose labels need a search for chunks.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    documents: bool

    def to(self, device: str) -> Samples:
        """The same batch on another device."""
        return replace(
            self,
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            features=self.features.to(device),
        )


Autocast = Callable[[], AbstractContextManager[Any]]
Step = Callable[[list[Samples]], None]


class Given(nn.Module):
    """In place of open_clip's model: its visual tower hands on features made before."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()


class Tower(nn.Module):
    """What `Flamingo` calls: a pair whose second is the patches' features."""

    def forward(self, features: Tensor) -> tuple[None, Tensor]:
        """(B * T, 1, N, D), given as if they were pixels, as (B * T, N, D)."""
        return None, features.squeeze(1)


def their_model(model: im.VisionLanguageModel) -> nn.Module:
    """OpenFlamingo's own model around the same language model, with copied weights."""
    from open_flamingo.src.flamingo import Flamingo

    tokens = model.special_tokens
    lm = openflamingo.bare_model(tokens.end_id + 1)
    other: Any = Flamingo(Given(), lm, tokens.end_id, tokens.image_id, WIDTH, EVERY)
    # as their factory does with freeze_lm_embeddings
    other.requires_grad_(False)
    other.perceiver.requires_grad_(True)
    other.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    copy_weights(other, model)
    return cast(nn.Module, other.train())


@torch.no_grad()
def copy_weights(other: Any, model: im.VisionLanguageModel) -> None:
    """Our weights into theirs; a tensor that only one side has is an error."""
    tokens = cast(AddedTokens, model.special_tokens)
    embedding = other.lang_encoder.get_input_embeddings().weight
    embedding[-2:] = tokens.input_rows  # the head is tied to it
    tokens.output_rows.copy_(embedding[-1:])
    resampler = cast(PerceiverResampler, model.connector)
    other.perceiver.latents.copy_(resampler.latents)
    other.perceiver.norm.load_state_dict(resampler.norm.state_dict())
    for ours, (attention, ffw) in zip(resampler.layers, other.perceiver.layers, strict=True):
        layer = cast(ResamplerLayer, ours)
        attention.norm_media.load_state_dict(layer.patch_norm.state_dict())
        attention.norm_latents.load_state_dict(layer.latent_norm.state_dict())
        copy_attention(attention, layer.attention)
        ffw.load_state_dict(layer.ffw.state_dict())
    blocks = [b for b in other.lang_encoder.gated_cross_attn_layers if b is not None]
    for theirs, mine in zip(blocks, model.fusion.blocks.values(), strict=True):
        block = cast(GatedCrossAttentionBlock, mine)
        theirs.attn.norm.load_state_dict(block.norm.state_dict())
        copy_attention(theirs.attn, block.attention)
        theirs.ff.load_state_dict(block.ffw.state_dict())
        theirs.attn_gate.copy_(block.attention_gate)
        theirs.ff_gate.copy_(block.ffw_gate)


def copy_attention(theirs: Any, ours: Any) -> None:
    """The three maps of an attention."""
    theirs.to_q.load_state_dict(ours.query_projection.state_dict())
    theirs.to_kv.load_state_dict(ours.context_projection.state_dict())
    theirs.to_out.load_state_dict(ours.out_projection.state_dict())


def their_labels(samples: Samples, image: int, end: int) -> Tensor:
    """Labels as their `train_one_epoch` finds them, row by row and token by token."""
    labels = samples.ids.clone()
    labels[labels == PAD] = IGNORED
    if samples.documents:
        for i in range(labels.shape[0]):
            place = 0
            while place < labels.shape[1] and labels[i][place] != image:
                labels[i][place] = IGNORED
                place += 1
            for ended in torch.where(labels[i] == end)[0]:
                place = int(ended) + 1
                while place < labels.shape[1] and labels[i][place] != image:
                    labels[i][place] = IGNORED
                    place += 1
    labels[labels == image] = IGNORED
    return labels


def their_loss(other: Any, samples: Samples, *, fill: bool) -> Tensor:
    """The loss of a batch; `fill` makes documents have MOST_IMAGES, as their loader does."""
    labels = their_labels(samples, other.media_token_id, other.eoc_token_id)
    vision = samples.features[:, :, None, None]  # (B, T, F, C, N, D) in place of (.., C, H, W)
    if fill and samples.documents:
        missing = MOST_IMAGES - vision.shape[1]
        vision = torch.cat(
            [vision, torch.zeros_like(vision[:, :1]).repeat_interleave(missing, 1)], 1
        )
    loss: Tensor = other(
        vision_x=vision, lang_x=samples.ids, attention_mask=samples.mask, labels=labels
    )[0]
    return loss


def their_step(other: nn.Module, autocast: Autocast, *, fill: bool) -> Step:
    """Their training step, one backward pass for each data set."""
    named = [(n, p) for n, p in other.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if "gated_cross_attn" in n]
    rest = [p for n, p in named if "gated_cross_attn" not in n]
    groups = [
        {"params": decayed, "weight_decay": CONFIG.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=CONFIG.lr)

    def step(batches: list[Samples]) -> None:
        for samples in batches:
            with autocast():
                loss = their_loss(other, samples, fill=fill)
            if samples.documents and torch.isnan(loss):
                raise FloatingPointError("the loss is not a number")
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(other.parameters(), CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
