"""`pool`: averages over the grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.model.connectors.pool import PoolConnector


def pooling_only(grid: tuple[int, int], tokens: int) -> PoolConnector:
    connector = PoolConnector(1, 1, grid, tokens=tokens)
    connector.mlp = nn.Sequential(nn.Identity())
    return connector


def test_averages_of_squares() -> None:
    numbers = torch.arange(16.0).view(1, 16, 1)  # 4 rows of 4
    assert pooling_only((4, 4), 4)(numbers).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_averages_of_rectangles() -> None:
    numbers = torch.arange(12.0).view(1, 12, 1)  # 2 rows of 6
    assert pooling_only((2, 6), 4)(numbers).flatten().tolist() == [1, 4, 7, 10]


def test_cells_overlap_where_the_side_does_not_divide() -> None:
    numbers = torch.arange(9.0).view(1, 9, 1)  # 3 rows of 3, cells of 2 x 2
    assert pooling_only((3, 3), 4)(numbers).flatten().tolist() == [2, 3, 5, 6]


def test_constant_features_become_equal_tokens() -> None:
    connector = PoolConnector(5, 7, (9, 9), tokens=16)
    constant = torch.randn(5)
    tokens = connector(constant.expand(1, 81, 5))
    torch.testing.assert_close(tokens, connector.mlp(constant).expand(1, 16, 7))


def test_as_many_tokens_as_patches_is_the_mlp_alone() -> None:
    connector = PoolConnector(5, 7, (4, 4), tokens=16)
    features = torch.randn(2, 16, 5)
    torch.testing.assert_close(connector(features), connector.mlp(features))


@pytest.mark.parametrize(("tokens", "near"), [(10, "9, 16"), (2, "1, 4"), (0, "1, 1")])
def test_no_square_number(tokens: int, near: str) -> None:
    with pytest.raises(
        ConfigError, match=f"tokens={tokens} is not a square number; near ones: {near}"
    ):
        PoolConnector(5, 7, (4, 4), tokens=tokens)


def test_without_a_grid_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="pool needs patches on a grid"):
        PoolConnector(5, 7, None)
