"""Every connector through `build_connector`, and modules of the user's own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus import (
    MLP,
    AttentionPool,
    CAbstractor,
    Inline,
    Linear,
    PixelShuffle,
    PixelShuffleMLP,
    Pool,
    QFormer,
    Resampler,
    testing,
)
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.analysis import Discriminant
from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape
from isthmus.model.connectors import Connector, build_connector
from isthmus.model.connectors.merger import Merger
from isthmus.model.connectors.names import Names
from isthmus.model.connectors.norm_pool import NormPool

SHAPE = FeatureShape(width=12, tokens=16, grid=(4, 4))
WIDTH = 10
WORDS = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))

# options, visual tokens of an image
EVERY: dict[str, tuple[Any, int]] = {
    "linear": (Linear(), 16),
    "mlp": (MLP(depth=3), 16),
    "pixel_shuffle": (PixelShuffle(factor=2), 4),
    "pixel_shuffle_mlp": (PixelShuffleMLP(factor=2), 4),
    "pool": (Pool(tokens=9), 9),
    "norm_pool": (NormPool(tokens=4), 4),
    "attention_pool": (AttentionPool(tokens=5, heads=3), 5),
    "resampler": (Resampler(latents=5, depth=2, heads=2, head_dim=7), 5),
    "qformer": (QFormer(queries=5, depth=3, heads=2, width=8), 5),
    "c_abstractor": (CAbstractor(tokens=9, depth=1, hidden=8), 9),
    "merger": (Merger(factor=2, norm="rms"), 4),
    "names": (Names(concepts=30, pieces=3, others=1, dimensions=6, free=2, heads=2), 15),
}
REGIONS = RegionShape(patches=16, count=3, stages=20, classes=7, rows=3)


def shape_of(name: str) -> FeatureShape:
    """The features that a connector reads: some want those of regions behind the patches."""
    if getattr(EVERY[name][0], "reads_regions", False):
        return FeatureShape(width=12, tokens=16 + 9, grid=(4, 4), regions=REGIONS)
    return SHAPE


def features_of(name: str, images: int = 3) -> Tensor:
    return torch.randn(images, shape_of(name).tokens, 12)


def made_of(name: str) -> nn.Module:
    """A connector whose analysis, if it has one, tells images apart."""
    made = build_connector(EVERY[name][0], shape_of(name), WIDTH, WORDS)
    for module in made.modules():
        if isinstance(module, Discriminant):
            module.linear.normal_()
            module.means.normal_()
    return made


def test_every_connector_is_here() -> None:
    assert EVERY.keys() == CONNECTORS.built_in().keys()


@pytest.mark.parametrize("name", EVERY)
def test_holds_what_a_connector_must(name: str) -> None:
    """Shape, a row alone, finite gradients, state, bfloat16."""
    options, tokens = EVERY[name]

    def build(shape: FeatureShape, width: int) -> nn.Module:
        return build_connector(options, shape, width, WORDS)

    testing.check_connector(build, shape=shape_of(name), width=WIDTH)
    made = build(shape_of(name), WIDTH)
    assert isinstance(made, Connector)
    assert (made.num_tokens, made.width) == (tokens, WIDTH)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_is_trained(name: str) -> None:
    made = made_of(name)
    tokens = made(features_of(name))
    (tokens * torch.randn_like(tokens)).sum().backward()
    still = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", EVERY)
def test_features_get_a_finite_gradient(name: str) -> None:
    made = made_of(name)
    features = features_of(name).requires_grad_()
    tokens = made(features)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.abs().amax(dim=(1, 2)).min() > 0  # every image counts


@pytest.mark.parametrize("name", EVERY)
def test_images_of_a_batch_do_not_mix(name: str) -> None:
    made = made_of(name).eval()
    features = features_of(name)
    rows = torch.cat([made(features[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(made(features), rows, rtol=0, atol=1e-5)
    assert (rows[0] - rows[1]).abs().max() > 1e-4  # and they are told apart


@pytest.mark.parametrize("options", [Inline(), None, "resampler", Resampler])
def test_what_is_no_connector(options: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a connector: .*Choices: attention_pool, c_abst"):
        build_connector(options, SHAPE, WIDTH)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (MLP, {"depth": 0}, "MLP.depth = 0: expected at least 1"),
        (PixelShuffle, {"factor": 0}, "PixelShuffle.factor = 0: expected at least 1"),
        (AttentionPool, {"tokens": -1}, "AttentionPool.tokens = -1: expected at least 1"),
        (Resampler, {"latents": 2.5}, "Resampler.latents = 2.5: expected int"),
        (Resampler, {"max_frames": -1}, "Resampler.max_frames = -1: expected at least 0"),
        (Resampler, {"activation": "gelo"}, 'Resampler.activation = "gelo": did you mean "gelu"'),
        (QFormer, {"cross_every": 0}, "QFormer.cross_every = 0: expected at least 1"),
        (CAbstractor, {"depth": True}, "CAbstractor.depth = True: expected int"),
    ],
)
def test_options_out_of_range(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cls(**options)


@pytest.mark.parametrize("name", sorted(CONNECTORS.built_in()))
def test_the_toy_of_a_connector_is_a_connector(name: str) -> None:
    """Smoke runs shrink every connector between the tiny parts, which have a 4 x 4 grid."""
    toy = CONNECTORS.find(name)().toy()
    made = build_connector(toy, shape_of(name), WIDTH, WORDS)
    assert sum(p.numel() for p in made.parameters()) < 20_000


@pytest.mark.parametrize("words", [None, torch.zeros(40, WIDTH + 1)], ids=["none", "other width"])
def test_words_of_another_width(words: Tensor | None) -> None:
    with pytest.raises(ConfigError, match="visual_width set to that width"):
        build_connector(Names(), shape_of("names"), WIDTH, words)


class Own(nn.Module):
    """A user's connector: the first tokens, mapped."""

    def __init__(self, in_width: int = 12, width: int = WIDTH, num_tokens: Any = 4) -> None:
        super().__init__()
        self.num_tokens, self.width = num_tokens, width
        self.map = nn.Linear(in_width, WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(self.map(features[:, :4]))


def test_a_module_of_ones_own_is_taken_as_it_is() -> None:
    own = Own().to(torch.float64)
    own.map.eval()  # an odd mode, which must survive the trial
    state = {n: t.clone() for n, t in own.state_dict().items()}
    assert build_connector(own, SHAPE, WIDTH) is own
    assert (own.training, own.map.training, own.dropout.training) == (True, False, True)
    assert all(torch.equal(t, state[n]) for n, t in own.state_dict().items())
    assert all(p.grad is None for p in own.parameters())


def test_a_module_without_parameters() -> None:
    class Mean(nn.Module):
        num_tokens, width = 1, 12

        def forward(self, features: Tensor) -> Tensor:
            return features.mean(dim=1, keepdim=True)

    build_connector(Mean(), SHAPE, 12)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (nn.Linear(12, WIDTH), "Linear is not a connector: it needs num_tokens"),
        (Own(width=7), "makes tokens of width 7, expected 10"),
        (Own(num_tokens=None), "num_tokens is None, expected 1 or more"),
        (Own(num_tokens=0), "num_tokens is 0, expected 1 or more"),
        (Own(num_tokens=5), r"made \(1, 4, 10\) of one image, .*= \(1, 5, 10\)"),
        (Own(in_width=9), r"cannot read the encoder's features \(1, 16, 12\): "),
    ],
)
def test_a_module_of_ones_own_that_does_not_fit(own: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_connector(own, SHAPE, WIDTH)
    assert own.training
