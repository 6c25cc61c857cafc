"""`qformer`: which layers read the patches. Its numbers are in the parity tests."""

from __future__ import annotations

import pytest
import torch

from isthmus.errors import ConfigError
from isthmus.model.connectors.qformer import QFormerConnector


def qformer(cross_every: int = 2, depth: int = 5) -> QFormerConnector:
    return QFormerConnector(
        6, 7, queries=3, depth=depth, heads=2, hidden=8, cross_every=cross_every
    )


@pytest.mark.parametrize(
    ("cross_every", "reading"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (5, [0])]
)
def test_layers_that_read_the_patches(cross_every: int, reading: list[int]) -> None:
    layers = qformer(cross_every).layers
    assert [i for i, layer in enumerate(layers) if layer.cross_attention is not None] == reading


def test_queries_see_the_image_only_through_cross_attention() -> None:
    made, features = qformer(), torch.randn(2, 6, 6)
    assert (made(features[:1]) - made(features[1:])).abs().max() > 1e-4
    for layer in made.layers:
        layer.cross_attention = None
    assert torch.equal(made(features[:1]), made(features[1:]))


def test_the_order_of_patches_does_not_matter() -> None:
    made, features = qformer(), torch.randn(2, 6, 6)
    torch.testing.assert_close(made(features[:, torch.randperm(6)]), made(features))


def test_queries_see_each_other() -> None:
    made, features = qformer(depth=1), torch.randn(1, 6, 6)
    before = made(features)
    made.queries.data[0, 0] += 3  # one channel: the norm would undo a shift of all
    assert (made(features) - before)[:, 1:].abs().max() > 1e-6


def test_heads_must_divide_the_hidden_width() -> None:
    with pytest.raises(ConfigError, match="heads=3 must divide the width 8"):
        QFormerConnector(6, 7, heads=3, hidden=8)
