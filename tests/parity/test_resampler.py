"""The Perceiver Resampler against plain loops and three published implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from isthmus.model.connectors.resampler import PerceiverResampler

from .reference import TOLERANCE, assert_parity, copy, scramble, slow_resampler

WIDTH, DEPTH, HEADS, HEAD_DIM, LATENTS = 12, 2, 3, 5, 4  # heads x head_dim is not the width


def resampler(**options: Any) -> PerceiverResampler:
    sizes = {"latents": LATENTS, "depth": DEPTH, "heads": HEADS, "head_dim": HEAD_DIM}
    return PerceiverResampler(WIDTH, WIDTH, **{**sizes, **options})


def copy_flamingo(ours: PerceiverResampler, theirs: nn.Module) -> None:
    """From the layout that flamingo-pytorch and OpenFlamingo share."""
    ours.latents.data.copy_(theirs.latents)
    copy(ours.norm, theirs.norm)
    for layer, (attention, ffw) in zip(ours.layers, theirs.layers, strict=True):
        copy(layer.patch_norm, attention.norm_media)
        copy(layer.latent_norm, attention.norm_latents)
        copy(layer.attention.query_projection, attention.to_q)
        copy(layer.attention.context_projection, attention.to_kv)
        copy(layer.attention.out_projection, attention.to_out)
        copy(layer.ffw, ffw)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "squared_relu"])
def test_equals_plain_loops(activation: str) -> None:
    ours = resampler(activation=activation)
    scramble(ours)
    features = torch.randn(2, 5, WIDTH)
    expected = slow_resampler(ours, features, activation)
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=TOLERANCE)


def test_equals_plain_loops_on_clips() -> None:
    ours = resampler(max_frames=3)
    scramble(ours)
    assert ours.frames is not None
    clips = torch.randn(2, 3, 4, WIDTH)
    placed = torch.stack([clips[:, t] + ours.frames[t] for t in range(3)], dim=1)
    expected = slow_resampler(ours, placed.reshape(2, 12, WIDTH), "gelu")
    torch.testing.assert_close(ours(clips), expected, rtol=0, atol=TOLERANCE)


def test_equals_idefics() -> None:
    config = IdeficsConfig(vision_config={"embed_dim": WIDTH})
    theirs = IdeficsPerceiverResampler(config, WIDTH, DEPTH, HEADS, HEAD_DIM, LATENTS)
    scramble(theirs)
    ours = resampler(activation="relu")
    ours.latents.data.copy_(theirs.latents)
    copy(ours.norm, theirs.layer_norm)
    for layer, (attention, ffw) in zip(ours.layers, theirs.blocks, strict=True):
        copy(layer.patch_norm, attention.context_layer_norm)
        copy(layer.latent_norm, attention.latents_layer_norm)
        copy(layer.attention.query_projection, attention.q_proj)
        keys_values = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
        layer.attention.context_projection.weight.data.copy_(keys_values)
        copy(layer.attention.out_projection, attention.output_proj)
        copy(layer.ffw[0], ffw.ln)
        copy(layer.ffw[1], ffw.fc)
        copy(layer.ffw[3], ffw.c_proj)
    assert_parity(ours, theirs, torch.randn(3, 7, WIDTH))


def test_equals_flamingo_pytorch() -> None:
    flamingo = pytest.importorskip("flamingo_pytorch", reason="flamingo-pytorch is not installed")
    theirs = flamingo.PerceiverResampler(
        dim=WIDTH, depth=DEPTH, dim_head=HEAD_DIM, heads=HEADS, num_latents=LATENTS
    )
    scramble(theirs)
    ours = resampler()
    copy_flamingo(ours, theirs)

    def rows(images: Tensor) -> Tensor:
        """Three images of two rows, each resampled by itself.

        It adds an embedding of an image's rank among its row's images, which is no part of the
        published resampler and stays outside ours.
        """
        return ours((images + theirs.media_pos_emb[:3]).flatten(0, 1)).unflatten(0, (2, 3))

    assert_parity(rows, theirs, torch.randn(2, 3, 7, WIDTH))


def open_flamingo(**options: Any) -> nn.Module:
    reason = "open-flamingo 2.0.1 is not installed (pip install --no-deps open-flamingo==2.0.1)"
    helpers = pytest.importorskip("open_flamingo.src.helpers", reason=reason, exc_type=ImportError)
    theirs: nn.Module = helpers.PerceiverResampler(
        dim=WIDTH, depth=DEPTH, dim_head=HEAD_DIM, heads=HEADS, num_latents=LATENTS, **options
    )
    scramble(theirs)
    return theirs


def test_equals_open_flamingo_on_images() -> None:
    theirs = open_flamingo()
    ours = resampler()
    copy_flamingo(ours, theirs)

    def rows(images: Tensor) -> Tensor:
        return ours(images.flatten(0, 2)).unflatten(0, (2, 3))

    assert_parity(rows, theirs, torch.randn(2, 3, 1, 7, WIDTH))  # rows, images, one frame each


@pytest.mark.parametrize("frames", [2, 4])
def test_equals_open_flamingo_on_clips(frames: int) -> None:
    theirs = open_flamingo(max_num_frames=4)
    ours = resampler(max_frames=4)
    copy_flamingo(ours, theirs)
    assert ours.frames is not None
    ours.frames.data.copy_(theirs.frame_embs)

    def rows(clips: Tensor) -> Tensor:
        return ours(clips.flatten(0, 1)).unflatten(0, (2, 3))

    assert_parity(rows, theirs, torch.randn(2, 3, frames, 7, WIDTH))
