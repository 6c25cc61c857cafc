"""`pixel_shuffle`: which patches become one token, and in which order."""

from __future__ import annotations

import pytest
import torch

from isthmus.errors import ConfigError
from isthmus.model.connectors.pixel_shuffle import PixelShuffleConnector, space_to_depth


def test_an_index_grid() -> None:
    numbers = torch.arange(24.0).view(1, 24, 1)  # 4 rows of 6
    assert space_to_depth(numbers, (4, 6), 2)[0].tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]


def test_channels_of_a_patch_stay_together() -> None:
    numbers = torch.arange(8.0).view(1, 4, 2)
    assert space_to_depth(numbers, (2, 2), 2)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("grid", "factor"), [((4, 6), 2), ((9, 9), 3), ((4, 4), 1), ((3, 6), 3)])
def test_nothing_is_lost(grid: tuple[int, int], factor: int) -> None:
    """Depth-to-space by hand gives the features back."""
    features = torch.randn(2, grid[0] * grid[1], 5)
    tokens = space_to_depth(features, grid, factor)
    back = torch.empty(2, *grid, 5)
    for token in range(tokens.shape[1]):
        row, column = divmod(token, grid[1] // factor)
        square = tokens[:, token].view(2, factor, factor, 5)
        rows = slice(row * factor, (row + 1) * factor)
        back[:, rows, column * factor : (column + 1) * factor] = square
    assert torch.equal(back.flatten(1, 2), features)


def test_tokens_are_a_bias_free_map_of_the_squares() -> None:
    connector = PixelShuffleConnector(5, 7, (4, 6), factor=2)
    features = torch.randn(2, 24, 5)
    expected = space_to_depth(features, (4, 6), 2) @ connector.projection.weight.T
    assert connector.num_tokens == 6
    torch.testing.assert_close(connector(features), expected)
    assert torch.equal(connector(torch.zeros(1, 24, 5)), torch.zeros(1, 6, 7))


def test_a_factor_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"factor=4 .*6 x 9; these do: 1, 3$"):
        PixelShuffleConnector(5, 7, (6, 9), factor=4)
    with pytest.raises(ConfigError, match=r"factor=2 .*6 x 9; these do: 1, 3$"):
        PixelShuffleConnector(5, 7, (6, 9), factor=2)  # divides the rows only


def test_without_a_grid_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="pixel_shuffle needs patches on a grid"):
        PixelShuffleConnector(5, 7, None)
