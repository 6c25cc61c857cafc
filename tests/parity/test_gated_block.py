"""Gated cross-attention against a definition in loops and two published implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.model.fusion.cross_attention import CrossAttention, GatedCrossAttentionBlock
from isthmus.model.fusion.sight import Sight, first_image, image_of_token

from .reference import TOLERANCE, copy, scramble

WIDTH, VISUAL, HEADS, HEAD_DIM, TOKENS = 12, 10, 3, 4, 5
# text before, two images with text; one at the start, another at the end; two side by side
TAGS = torch.tensor([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0]]).bool()
MEDIA = torch.tensor([[0, 1], [2, 3], [4, 5]])  # image numbers by row
ROWS, PICTURES = MEDIA.shape[0], MEDIA.numel()


def block(sees: str) -> GatedCrossAttentionBlock:
    config = CrossAttention(heads=HEADS, head_dim=HEAD_DIM, gate=0.4, sees=sees)  # type: ignore[arg-type]
    made = GatedCrossAttentionBlock(WIDTH, VISUAL, config)
    scramble(made)
    return made


def sight_of(visual: Tensor) -> Sight:
    sight = Sight(
        visual=visual,
        prompt=image_of_token(TAGS, torch.ones_like(TAGS).long()),
        begin=first_image(TAGS),
    )
    sight.advance(rows=ROWS, length=TAGS.shape[1], past=0)
    return sight


def by_definition(ours: GatedCrossAttentionBlock, hidden: Tensor, visual: Tensor) -> Tensor:
    """Token by token: equation 1 of Flamingo's section 2.3, and the block of its figure 4."""
    out = hidden.clone()
    attention = ours.attention
    for b, row in enumerate(TAGS.tolist()):
        for t in range(len(row)):
            seen = sum(row[: t + 1])
            if not seen:
                continue
            chosen = MEDIA[b, seen - 1 : seen] if ours.sees == "last" else MEDIA[b, :seen]
            context = visual[chosen].flatten(0, 1)
            y = hidden[b, t]
            q = attention.query_projection(ours.norm(y))
            k, v = attention.context_projection(context).chunk(2, dim=-1)
            read = []
            for h in range(HEADS):
                part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
                weights = (k[:, part] @ q[part] / HEAD_DIM**0.5).softmax(dim=0)
                read.append(weights @ v[:, part])
            y = y + ours.attention_gate.tanh() * attention.out_projection(torch.cat(read))
            out[b, t] = y + ours.ffw_gate.tanh() * ours.ffw(y)
    return out


@pytest.mark.parametrize("sees", ["last", "previous"])
def test_equals_the_definition(sees: str) -> None:
    ours = block(sees)
    hidden, visual = torch.randn(ROWS, 7, WIDTH), torch.randn(PICTURES, TOKENS, VISUAL)
    got = ours(hidden, sight_of(visual), 0)
    torch.testing.assert_close(got, by_definition(ours, hidden, visual), rtol=0, atol=TOLERANCE)
    assert torch.equal(got[0, 0], hidden[0, 0])  # before the first image: untouched


def copy_block(ours: GatedCrossAttentionBlock, theirs: Any) -> None:
    """From the layout that flamingo-pytorch and OpenFlamingo share."""
    copy(ours.norm, theirs.attn.norm)
    copy(ours.attention.query_projection, theirs.attn.to_q)
    copy(ours.attention.context_projection, theirs.attn.to_kv)
    copy(ours.attention.out_projection, theirs.attn.to_out)
    copy(ours.ffw, theirs.ff)
    ours.attention_gate.data.copy_(theirs.attn_gate)
    ours.ffw_gate.data.copy_(theirs.ff_gate)


def open_flamingo(sees: str) -> nn.Module:
    helpers = pytest.importorskip(
        "open_flamingo.src.helpers",
        reason="open-flamingo 2.0.1 pins torch 2.0.1: pip install --no-deps open-flamingo==2.0.1",
    )
    made: nn.Module = helpers.GatedCrossAttentionBlock(
        dim=WIDTH,
        dim_visual=VISUAL,
        heads=HEADS,
        dim_head=HEAD_DIM,
        only_attend_immediate_media=sees == "last",
    )
    return made


def flamingo_pytorch(sees: str) -> nn.Module:
    library = pytest.importorskip("flamingo_pytorch")
    made: nn.Module = library.GatedCrossAttentionBlock(
        dim=VISUAL,  # it has one width for text and images, and so have we in this comparison
        heads=HEADS,
        dim_head=HEAD_DIM,
        only_attend_immediate_media=sees == "last",
    )
    return made


@pytest.mark.parametrize("sees", ["last", "previous"])
@pytest.mark.parametrize("reference", [open_flamingo, flamingo_pytorch])
def test_equals_published_implementations(reference: Any, sees: str) -> None:
    theirs = reference(sees)
    width = WIDTH if reference is open_flamingo else VISUAL
    scramble(theirs)
    config = CrossAttention(heads=HEADS, head_dim=HEAD_DIM, sees=sees)  # type: ignore[arg-type]
    ours = GatedCrossAttentionBlock(width, VISUAL, config)
    copy_block(ours, theirs)
    hidden = torch.randn(ROWS, 7, width)
    visual = torch.randn(PICTURES, TOKENS, VISUAL)
    inputs = [[t.clone().requires_grad_() for t in (hidden, visual)] for _ in range(2)]
    got = ours(inputs[0][0], sight_of(inputs[0][1]), 0)
    expected = theirs(inputs[1][0], inputs[1][1][MEDIA], media_locations=TAGS)
    # where no image has been seen, theirs still runs its feed-forward, or looks at all images
    seeing = TAGS.cumsum(dim=1) > 0
    torch.testing.assert_close(got[seeing], expected[seeing], rtol=0, atol=TOLERANCE)
    assert torch.equal(got[~seeing], hidden[~seeing])  # ours leaves them bit for bit
    cotangent = torch.randn_like(expected)
    got[seeing].backward(cotangent[seeing])
    expected[seeing].backward(cotangent[seeing])
    for mine, other in zip(*inputs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert other.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=TOLERANCE)


def test_a_zero_gate_stops_everything_but_the_gate() -> None:
    ours = GatedCrossAttentionBlock(WIDTH, VISUAL, CrossAttention(heads=HEADS, head_dim=HEAD_DIM))
    hidden = torch.randn(ROWS, 7, WIDTH)
    got = ours(hidden, sight_of(torch.randn(PICTURES, TOKENS, VISUAL)), 0)
    assert torch.equal(got, hidden)
    got.backward(torch.randn_like(got))
    assert ours.attention_gate.grad is not None
    assert ours.attention_gate.grad.abs() > 0
    assert ours.attention.query_projection.weight.grad is not None
    assert not ours.attention.query_projection.weight.grad.any()


def test_another_gate_starts_from_zero_maps_that_learn_at_once() -> None:
    config = CrossAttention(heads=HEADS, head_dim=HEAD_DIM, gate=0.5)
    ours = GatedCrossAttentionBlock(WIDTH, VISUAL, config)
    hidden = torch.randn(ROWS, 7, WIDTH)
    got = ours(hidden, sight_of(torch.randn(PICTURES, TOKENS, VISUAL)), 0)
    assert torch.equal(got, hidden)
    got.backward(torch.randn_like(got))
    assert ours.attention.out_projection.weight.grad is not None
    assert ours.attention.out_projection.weight.grad.abs().max() > 0
