"""Connectors that map patches in place, against Transformers and timm."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn
from transformers import Idefics3Config, LlavaConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from isthmus.model.connectors.c_abstractor import CAbstractorConnector, ResidualBlock
from isthmus.model.connectors.mlp import MLPConnector
from isthmus.model.connectors.pixel_shuffle import PixelShuffleConnector

from .reference import assert_parity, copy, scramble


def test_mlp_equals_llava() -> None:
    config = LlavaConfig()
    config.vision_config.hidden_size, config.text_config.hidden_size = 10, 14
    theirs = LlavaMultiModalProjector(config)
    scramble(theirs)
    ours = MLPConnector(10, 14, 6)
    copy(ours.layers[0], theirs.linear_1)
    copy(ours.layers[2], theirs.linear_2)
    assert_parity(ours, theirs, torch.randn(3, 6, 10))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_pixel_shuffle_equals_idefics3(factor: int) -> None:
    config = Idefics3Config(vision_config={"hidden_size": 5}, scale_factor=factor)
    config.text_config.hidden_size = 7
    theirs = Idefics3Connector(config)
    scramble(theirs)
    ours = PixelShuffleConnector(5, 7, (12, 12), factor=factor)
    copy(ours.projection, theirs.modality_projection.proj)
    assert_parity(ours, theirs, torch.randn(2, 144, 5))


def copy_block(ours: ResidualBlock, theirs: nn.Module) -> None:
    """One RegNet bottleneck of timm's."""
    for place, layer in ((0, theirs.conv1), (3, theirs.conv2), (7, theirs.conv3)):
        copy(ours.branch[place], layer.conv)
        copy(ours.branch[place + 1], layer.bn)
    squeeze = ours.branch[6].weights
    copy(squeeze[1], theirs.se.fc1)
    copy(squeeze[3], theirs.se.fc2)
    if isinstance(ours.shortcut, nn.Sequential):
        copy(ours.shortcut[0], theirs.downsample.conv)
        copy(ours.shortcut[1], theirs.downsample.bn)


@pytest.mark.parametrize("in_width", [12, 16], ids=["other-width", "same-width"])
def test_c_abstractor_equals_honeybee(in_width: int) -> None:
    """Honeybee builds it of timm's RegNet stages, with these arguments."""
    stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
    before, after = stage(2, in_width, 16), stage(2, 16, 16)
    scramble(before)
    scramble(after)
    ours = CAbstractorConnector(in_width, 7, (4, 6), tokens=4, depth=2, hidden=16)
    for own, published in ((ours.before, before), (ours.after, after)):
        for block, other in zip(own, published.children(), strict=True):
            copy_block(block, other)

    def honeybee(features: Tensor) -> Tensor:
        x = (features + ours.positions).reshape(3, 4, 6, in_width).permute(0, 3, 1, 2)
        x = after(nn.functional.adaptive_avg_pool2d(before(x), (2, 2)))
        return ours.mlp(x.permute(0, 2, 3, 1).reshape(3, 4, 16))

    assert_parity(ours, honeybee, torch.randn(3, 24, in_width))
