"""`attention_pool`: learned queries over the patches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.model.connectors.attention_pool import AttentionPoolConnector


def test_blind_queries_average_the_values() -> None:
    """With equal scores everywhere, each token is the map of the mean value."""
    connector = AttentionPoolConnector(8, 5, tokens=3, heads=2)
    nn.init.zeros_(connector.attention.query_projection.weight)
    nn.init.zeros_(connector.attention.query_projection.bias)
    features = torch.randn(2, 6, 8)
    projected = connector.attention.context_projection(connector.norm(features))
    mean = projected[..., 8:].mean(dim=1)
    expected = connector.mlp(connector.attention.out_projection(mean))
    torch.testing.assert_close(connector(features), expected[:, None].expand(2, 3, 5))


def test_the_order_of_patches_does_not_matter() -> None:
    connector = AttentionPoolConnector(8, 5, tokens=3, heads=2)
    features, order = torch.randn(2, 6, 8), torch.randperm(6)
    torch.testing.assert_close(connector(features[:, order]), connector(features))


def test_each_query_gathers_its_own_token() -> None:
    connector = AttentionPoolConnector(8, 5, tokens=3, heads=2)
    features = torch.randn(1, 6, 8)
    before = connector(features)
    connector.queries.data[1] += 3
    changed = (connector(features) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads=3 must divide the width 8"):
        AttentionPoolConnector(8, 5, heads=3)
