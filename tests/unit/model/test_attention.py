"""The one attention, against PyTorch's own layer and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.model.attention import ACTIVATIONS, MultiHeadAttention, build_activation, feed_forward


def published(ours: MultiHeadAttention, context_width: int) -> nn.MultiheadAttention:
    """PyTorch's layer with the same weights; its inner width is the queries'."""
    width = ours.query_projection.in_features
    layer = nn.MultiheadAttention(
        width, ours.heads, kdim=context_width, vdim=context_width, batch_first=True
    )
    inner = ours.query_projection.out_features
    q, kv = ours.query_projection, ours.context_projection
    with torch.no_grad():
        layer.q_proj_weight.copy_(q.weight)
        layer.k_proj_weight.copy_(kv.weight[:inner])
        layer.v_proj_weight.copy_(kv.weight[inner:])
        layer.in_proj_bias.copy_(torch.cat([q.bias, kv.bias]))
        layer.out_proj.load_state_dict(ours.out_projection.state_dict())
    return layer


@pytest.mark.parametrize("masked", [False, True])
def test_equals_pytorchs_layer(masked: bool) -> None:
    ours = MultiHeadAttention(8, 6, heads=2, head_dim=4, bias=True)
    queries, context = torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    mask = torch.rand(5, 7) < 0.5 if masked else None
    if mask is not None:
        mask[:, 0] = True  # no empty row
    expected, _ = published(ours, 6)(
        queries, context, context, attn_mask=None if mask is None else ~mask
    )
    torch.testing.assert_close(ours(queries, context, mask), expected, rtol=0, atol=1e-6)


def test_keys_and_values_are_projected_once_and_read_many_times() -> None:
    attention = MultiHeadAttention(8, 6, heads=3, head_dim=5)
    queries, context = torch.randn(2, 4, 8), torch.randn(2, 7, 6)
    keys, values = attention.project_context(context)
    assert keys.shape == values.shape == (2, 3, 7, 5)
    rows = [attention.attend(queries[:, i : i + 1], keys, values) for i in range(4)]
    torch.testing.assert_close(torch.cat(rows, 1), attention(queries, context))


def test_keys_come_before_values() -> None:
    """The layout of `to_kv` in flamingo-pytorch and OpenFlamingo."""
    attention = MultiHeadAttention(8, 6, heads=2, head_dim=4)
    context = torch.randn(1, 7, 6)
    keys, values = attention.project_context(context)
    rows = context @ attention.context_projection.weight.T
    torch.testing.assert_close(keys.transpose(1, 2).flatten(2), rows[..., :8])
    torch.testing.assert_close(values.transpose(1, 2).flatten(2), rows[..., 8:])


def test_a_masked_position_has_no_say() -> None:
    attention = MultiHeadAttention(8, 6, heads=2, head_dim=4)
    queries, context = torch.randn(1, 3, 8), torch.randn(1, 4, 6)
    mask = torch.tensor([[True, True, False, True]])
    changed = context.clone()
    changed[:, 2] += 5
    assert torch.equal(attention(queries, changed, mask), attention(queries, context, mask))
    assert not torch.allclose(attention(queries, changed), attention(queries, context))


def test_out_width() -> None:
    attention = MultiHeadAttention(8, 6, heads=2, head_dim=4, out_width=3)
    assert attention(torch.zeros(1, 2, 8), torch.zeros(1, 4, 6)).shape == (1, 2, 3)


def test_no_queries_read_nothing() -> None:
    attention = MultiHeadAttention(8, 6, heads=2, head_dim=4)
    assert attention(torch.zeros(3, 0, 8), torch.zeros(3, 4, 6)).shape == (3, 0, 8)


def test_activations_at_known_points() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    expected = {
        "gelu": [-0.158655, 0.0, 1.954500],
        "relu": [0.0, 0.0, 2.0],
        "silu": [-0.268941, 0.0, 1.761594],
        "squared_relu": [0.0, 0.0, 4.0],
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        got = build_activation(name)(x)
        torch.testing.assert_close(got, torch.tensor(values), rtol=0, atol=1e-5, msg=name)


def test_an_unknown_activation_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match='unknown activation "gelo": did you mean "gelu"'):
        feed_forward(4, mult=2, activation="gelo")


def test_feed_forward_by_hand() -> None:
    ffw = feed_forward(4, mult=3, activation="relu")
    x = torch.randn(2, 5, 4)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (normed @ ffw[1].weight.T).clamp(min=0) @ ffw[3].weight.T
    assert ffw[1].weight.shape == (12, 4)
    assert ffw[1].bias is None
    assert ffw[3].bias is None
    torch.testing.assert_close(ffw(x), expected)
