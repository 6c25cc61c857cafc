"""What is seen of regions of an image: the numbers that the network's own pieces give."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import isthmus as im
from isthmus.config.speedups import speedup
from isthmus.errors import ConfigError
from isthmus.model.backbones.stages import REGIONS, part_of
from isthmus.model.backbones.vision import VisionEncoder, load_vision


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    return model.eval()


def encoder_of(network: nn.Module, regions: bool = True) -> VisionEncoder:
    config = im.VisionConfig(name="object:lite", resize="squash", regions=regions)
    from isthmus.model.backbones.libraries import from_object

    return VisionEncoder(from_object(network, config), config)


def test_patches_come_first_and_are_the_same(network: nn.Module) -> None:
    encoder, plain = encoder_of(network), encoder_of(network, regions=False)
    shape = encoder.shape.regions
    assert shape is not None
    assert shape.patches == plain.shape.tokens
    assert encoder.shape.grid == plain.shape.grid
    assert encoder.shape.tokens == shape.patches + shape.count * shape.rows
    pixels = torch.randn(2, 3, *encoder.image_size)
    found = encoder(pixels)
    assert found.shape[1:] == (encoder.shape.tokens, encoder.shape.width)
    torch.testing.assert_close(found[:, : shape.patches], plain(pixels), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.eager(pixels), found, atol=1e-3, rtol=1e-3)
    if speedup("traced"):  # one graph for any number of images
        assert list(encoder._traced.values()) != [None]
        three = torch.randn(3, 3, *encoder.image_size)
        torch.testing.assert_close(encoder(three), encoder.eager(three), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_each_region_is_said_what_its_part_of_the_maps_says(network: nn.Module) -> None:
    encoder = encoder_of(network)
    assert encoder.shape.regions is not None
    pixels = torch.randn(1, 3, *encoder.image_size)
    _, stages, scores = encoder.shape.regions.split(encoder(pixels))
    assert stages.shape[1] == scores.shape[1] == len(REGIONS) == 6
    assert scores.shape[2] == 7
    last, maps = network.forward_intermediates(pixels)  # type: ignore[operator]
    # the whole image: what the network's own classifier says, and what `stages` gives
    torch.testing.assert_close(scores[:, 0], network(pixels), atol=1e-4, rtol=1e-3)
    own = encoder.stages(pixels)
    torch.testing.assert_close(stages[:, 0], own, atol=1e-4, rtol=1e-3)
    height, width = last.shape[-2:]
    top_right = last[..., : (height + 1) // 2, width // 2 :]
    expected = network.classifier(top_right.mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(scores[:, 2], expected, atol=1e-4, rtol=1e-3)
    first = maps[0][..., : maps[0].shape[-2] // 2, maps[0].shape[-1] // 2 :]
    channels = first.shape[1]
    torch.testing.assert_close(stages[:, 2, :channels], first.mean((2, 3)), atol=1e-4, rtol=1e-3)


def test_what_stands_in_a_quadrant_is_seen_there_alone(network: nn.Module) -> None:
    """Of the first stage, whose fields of view are small."""
    encoder = encoder_of(network)
    assert encoder.shape.regions is not None
    blank = torch.zeros(1, 3, *encoder.image_size)
    marked = blank.clone()
    marked[..., 10:30, -30:-10] = 3.0
    channels = 16
    one, other = (encoder.shape.regions.split(encoder(p))[1][0] for p in (blank, marked))
    moved = (one[:, :channels] - other[:, :channels]).abs().amax(dim=1) > 1e-3
    assert [name for name, m in zip(REGIONS, moved.tolist(), strict=True) if m] == [
        "whole",
        "top right",
    ]


def test_parts_cover_the_map_and_the_middle_is_inside() -> None:
    for size in (2, 3, 7, 9, 130):
        grid = torch.arange(size * size).view(size, size)
        quarters = {int(v) for r in REGIONS[1:5] for v in part_of(grid, r).flatten()}
        assert len(quarters) == size * size
        middle = part_of(grid, "middle")
        assert 0 < middle.numel() <= grid.numel()
        assert middle.shape[0] == size - 2 * (size // 4)


def test_networks_without_a_classifier_or_stages_are_refused(network: nn.Module) -> None:
    bare = copy.deepcopy(network)
    bare.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="regions = true needs the last layer"):
        encoder_of(bare)
    with pytest.raises(ConfigError, match="got tiny-vit"):
        load_vision(im.VisionConfig(name="tiny-vit", regions=True))


def test_only_a_connector_that_knows_of_regions_gets_them(network: nn.Module) -> None:
    encoder = encoder_of(network)
    with pytest.raises(ConfigError, match="Linear reads only patches"):
        im.compose(encoder, "tiny-lm", im.Linear())
