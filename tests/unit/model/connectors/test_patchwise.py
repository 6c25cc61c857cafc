"""`linear` and `mlp`: one map, patch by patch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from isthmus.model.connectors.linear import LinearConnector
from isthmus.model.connectors.mlp import MLPConnector


def test_linear_by_hand() -> None:
    connector = LinearConnector(2, 1, 3)
    connector.projection.weight.data = torch.tensor([[2.0, -1.0]])
    connector.projection.bias.data = torch.tensor([0.5])
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])
    assert connector(features).tolist() == [[[2.5], [-0.5], [2.5]]]


def test_mlp_by_hand() -> None:
    connector = MLPConnector(4, 3, 5, depth=3)
    first, second, third = connector.layers[0], connector.layers[2], connector.layers[4]
    assert len(connector.layers) == 5
    x = torch.randn(2, 5, 4)
    hidden = F.gelu(x @ first.weight.T + first.bias)
    hidden = F.gelu(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(connector(x), hidden @ third.weight.T + third.bias)


def test_mlp_of_depth_one_is_linear() -> None:
    connector, linear = MLPConnector(4, 3, 5, depth=1), LinearConnector(4, 3, 5)
    linear.projection.load_state_dict(connector.layers[0].state_dict())
    features = torch.randn(2, 5, 4)
    assert torch.equal(connector(features), linear(features))


def test_patches_keep_their_order() -> None:
    features, order = torch.randn(1, 5, 4), torch.tensor([3, 0, 4, 1, 2])
    for connector in (LinearConnector(4, 3, 5), MLPConnector(4, 3, 5)):
        torch.testing.assert_close(connector(features[:, order]), connector(features)[:, order])
