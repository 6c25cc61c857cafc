"""`c_abstractor`: positions, pooling, locality. Its numbers are in the parity tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.model.connectors.c_abstractor import CAbstractorConnector, SqueezeExcite


def cubic_weights(phase: float, a: float = -0.75) -> list[float]:
    """Weights of the neighbours at -1, 0, 1, 2 of a point at `phase` between 0 and 1."""

    def near(d: float) -> float:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1

    def far(d: float) -> float:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a

    return [far(1 + phase), near(phase), near(1 - phase), far(2 - phase)]


def abstractor(grid: tuple[int, int] | None = (4, 4), tokens: int = 4) -> CAbstractorConnector:
    return CAbstractorConnector(6, 7, grid, tokens=tokens, depth=1, hidden=8)


def test_without_its_blocks_it_pools_placed_features() -> None:
    made = abstractor((2, 4))
    made.before, made.after, made.mlp = nn.Sequential(), nn.Sequential(), nn.Sequential()
    features = torch.randn(2, 8, 6)
    placed = (features + made.positions).view(2, 2, 2, 2, 6)  # row, cell, column in cell
    torch.testing.assert_close(made(features), placed.mean(dim=3).view(2, 4, 6))


def test_blocks_mix_neighbours_and_keep_places() -> None:
    """A patch changes the cells around it most: tokens are local."""
    made = CAbstractorConnector(6, 7, (6, 6), tokens=9, depth=1, hidden=8)
    nn.init.zeros_(made.after[0].branch[7].weight)  # leave the blocks before the pooling only
    features = torch.randn(1, 36, 6)
    changed = features.clone()
    changed[:, 0] += 3
    difference = (made(changed) - made(features)).norm(dim=-1)[0]
    assert difference.argmax() == 0
    assert difference[0] > 5 * difference[8]  # the far corner hears of it by excitation alone


def test_squeeze_and_excitation_by_hand() -> None:
    layer = SqueezeExcite(4, 2)
    x = torch.randn(2, 4, 3, 5)
    first, second = layer.weights[1], layer.weights[3]
    mean = x.mean(dim=(2, 3))
    hidden = nn.functional.silu(mean @ first.weight[..., 0, 0].T + first.bias)
    weights = (hidden @ second.weight[..., 0, 0].T + second.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * weights[..., None, None])


def test_positions_of_its_own_grid_are_the_learned_ones() -> None:
    made = abstractor((2, 4))
    positions = made.position_map(8)
    assert torch.equal(positions[0, :, 1, 2], made.positions[1 * 4 + 2])


def test_positions_of_a_larger_image_are_stretched() -> None:
    made = abstractor()
    rows = torch.arange(4.0).repeat_interleave(4)
    made.positions.data.copy_(rows[:, None].expand(16, 6))
    stretched = made.position_map(64)[0, 0]
    assert stretched.shape == (8, 8)
    torch.testing.assert_close(stretched, stretched[:, :1].expand(8, 8))  # rows stay rows
    torch.testing.assert_close(stretched + stretched.flip(0), torch.full((8, 8), 3.0))
    # row 2 stands at 0.75: a quarter before 1, three quarters behind 0; Keys' cubic, a = -3/4
    expected = sum(w * v for w, v in zip(cubic_weights(0.75), [0, 0, 1, 2], strict=True))
    torch.testing.assert_close(stretched[2], torch.full((8,), expected))
    assert made(torch.randn(2, 64, 6)).shape == (2, 4, 7)


def test_patches_that_make_no_square_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 15 patches, expected 4 x 4 or a square"):
        abstractor()(torch.zeros(1, 15, 6))


def test_no_square_number_of_tokens_and_no_grid() -> None:
    with pytest.raises(ConfigError, match="c_abstractor: tokens=6 is not a square number"):
        abstractor(tokens=6)
    with pytest.raises(ConfigError, match="c_abstractor needs patches on a grid"):
        abstractor(grid=None)
