"""`names`: who is heard, which words come out, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.errors import ConfigError
from isthmus.model.analysis import Discriminant
from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape
from isthmus.model.connectors.names import Names, NamesConnector
from isthmus.model.trust import trust

WIDTH, STAGES, CLASSES, GRID = 10, 6, 4, 4
REGIONS = RegionShape(patches=GRID, count=3, stages=STAGES, classes=CLASSES, rows=1)
SHAPE = FeatureShape(width=12, tokens=GRID + 3, grid=(2, 2), regions=REGIONS)
WORDS = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
NAMES = [[11, 12], [21], [31, 32, 33], [41, 42, 43, 44]]
FILLER = 7


def made(region_others: int = 0, noise: float = 0.0) -> NamesConnector:
    """Four concepts, each told by one number of the stages; the fourth class is no concept."""
    torch.manual_seed(0)
    sizes = {"concepts": 5, "pieces": 3, "others": 2, "dimensions": 5, "free": 1, "heads": 2}
    of_regions = {"region_concepts": 5, "region_dimensions": 5, "region_others": region_others}
    options = Names(**sizes, **of_regions, region_pieces=2, noise=noise)
    connector = options.build(SHAPE, WIDTH, WORDS)
    connector.set_names(NAMES, FILLER, classes=[2, 0, 1, -1], nothing=[9])
    connector.image.linear.copy_(torch.eye(5, STAGES) / 10)  # trusted up to a length of 10
    connector.image.means.copy_(torch.eye(5))
    connector.image.scale.fill_(20.0)
    connector.region.linear.copy_(torch.eye(5, STAGES))
    connector.region.means.copy_(torch.eye(5))
    connector.region.scale.fill_(20.0)
    connector.presence.offset.fill_(20.0)
    with torch.no_grad():
        for layer in (
            connector.sureness,
            connector.other_sureness,
            connector.region_sureness,
        ):
            layer.weight.zero_()
    return connector


def features(stages: list[list[float]], scores: list[list[float]]) -> Tensor:
    """Features of one image: noise in the patches, then what is said of each region."""
    told = torch.tensor([[*s, *c, 0.0, 0.0] for s, c in zip(stages, scores, strict=True)])
    return torch.cat([torch.randn(GRID, 12), told])[None]


def seen(which: int, size: float = 5.0) -> list[float]:
    return [size if i == which else 0.1 for i in range(STAGES)]


EVEN = [0.0] * CLASSES


def test_the_likeliest_name_stands_first_and_whole() -> None:
    connector = made()
    tokens = connector(features([seen(2), seen(0), seen(1)], [EVEN] * 3))[0]
    assert tokens.shape == (connector.num_tokens, WIDTH) == (3 + 1 + 2 + 2 * (1 + 2) + 1, WIDTH)
    torch.testing.assert_close(tokens[:3], WORDS[NAMES[2]])
    regions = tokens[[7, 8, 10, 11]]
    torch.testing.assert_close(tokens[[6, 9]], connector.places)
    torch.testing.assert_close(regions[:2], WORDS[NAMES[0]])
    torch.testing.assert_close(regions[2:], WORDS[[21, FILLER]])


def test_longer_names_are_cut_and_shorter_ones_filled_up() -> None:
    connector = made()
    assert connector.names[:4].tolist() == [
        [11, 12, FILLER],
        [21, FILLER, FILLER],
        [31, 32, 33],
        [41, 42, 43],
    ]
    assert connector.names[4].tolist() == [-1, -1, -1]


def test_the_next_likeliest_are_the_means_of_their_own_pieces() -> None:
    connector = made()
    stages = [[5.0, 3.0, 0.1, 1.0, 0.0, 0.0], seen(0), seen(0)]
    tokens = connector(features(stages, [[-99.0, 0.0, 0.0, 0.0]] * 3))[0]
    torch.testing.assert_close(tokens[4], WORDS[21])
    torch.testing.assert_close(tokens[5], WORDS[[41, 42, 43]].mean(dim=0))


@torch.no_grad()
def test_a_region_has_a_next_likeliest_too() -> None:
    connector = made(region_others=1)
    connector.other_sureness.weight[0, 0] = 1.0
    connector.other_sureness.bias.zero_()
    connector.presence.linear[4] = -100.0
    stages = [seen(0), [5.0, 3.0, 0.1, 1.0, 0.0, 0.0], [5.0, 3.0, 0.1, 1.0, 1.0, 0.0]]
    tokens = connector(features(stages, [EVEN] * 3))[0]
    assert len(tokens) == connector.num_tokens == 3 + 1 + 2 + 2 * (1 + 2 + 1) + 1
    first, second = tokens[6:10], tokens[10:14]
    torch.testing.assert_close(first[1:3], WORDS[NAMES[0]])
    share = connector.seen(features(stages, [EVEN] * 3)).shares[0, 1, 1]
    torch.testing.assert_close(first[3], WORDS[21] + share * F.one_hot(torch.tensor(0), WIDTH))
    torch.testing.assert_close(second[1:3], WORDS[[9, FILLER]])  # nothing is there
    torch.testing.assert_close(second[3, 1:], WORDS[9, 1:])


def test_far_from_what_was_fitted_the_classifier_names() -> None:
    connector = made()
    strange = [seen(0, size=100.0)] * 3
    sure = [0.0, 0.0, 9.0, 0.0]  # its third class is the second concept
    far = connector.seen(features(strange, [sure] * 3))
    assert float(far.trusted) < 1e-4
    expected = torch.tensor([0.0, 0.0, 9.0]).softmax(dim=0)  # classes of no name have no say
    for region in range(3):
        torch.testing.assert_close(far.shares[0, region, [2, 0, 1]], expected, atol=1e-4, rtol=0)
    near = connector.seen(features([seen(0)] * 3, [sure] * 3))
    assert float(near.trusted) > 0.99
    assert int(near.shares[0, 0].argmax()) == 0
    torch.testing.assert_close(near.shares.sum(dim=-1), torch.ones(1, 3))


def test_half_way_both_are_heard_alike() -> None:
    connector = made()
    half = connector.seen(features([[10.0, 0, 0, 0, 0, 0]] * 3, [[0.0, 0.0, 99.0, 0.0]] * 3))
    shares = half.shares
    torch.testing.assert_close(half.trusted, torch.full((1,), 0.5))
    assert float(shares[0, 0, 0]) == pytest.approx(0.5, abs=1e-3)
    assert float(shares[0, 0, 1]) == pytest.approx(0.5, abs=1e-3)


def test_unused_rows_are_never_named() -> None:
    connector = made()
    stages = [[0.0, 0.0, 0.0, 0.0, 5.0, 0.0]] * 3  # the fifth row's direction
    shares = connector.seen(features(stages, [EVEN] * 3)).shares
    assert float(shares[..., 4].max()) == 0.0


@torch.no_grad()
def test_sureness_is_told_behind_the_name() -> None:
    connector = made()
    connector.sureness.weight[0, 0] = 1.0  # of the likeliest
    connector.sureness.weight[1, 3] = 1.0  # trust
    sure = connector(features([seen(0)] * 3, [EVEN] * 3))[0, 3]
    doubtful = [[5.0, 4.9, 4.8, 4.7, 0.0, 0.0], seen(0), seen(0)]
    unsure = connector(features(doubtful, [EVEN] * 3))[0, 3]
    assert float(sure[0]) > 0.99
    assert float(unsure[0]) < 0.5
    assert float(sure[1]) == pytest.approx(float(trust(torch.tensor(0.5), 1.0)), abs=1e-2)


def test_an_analysis_is_cosine_of_what_is_left_of_the_stages() -> None:
    torch.manual_seed(1)
    analysis = Discriminant(STAGES, 3, 4)
    for tensor in (analysis.mean, analysis.linear, analysis.means):
        tensor.normal_()
    analysis.scale.fill_(7.0)
    stages = torch.randn(2, 5, STAGES)
    vectors = analysis.vectors(stages)
    torch.testing.assert_close(vectors, (stages - analysis.mean) @ analysis.linear.T)
    expected = 7 * F.normalize(vectors, dim=-1) @ analysis.means.T
    torch.testing.assert_close(analysis.logits(vectors), expected)


def test_where_a_region_holds_nothing_it_is_said_so() -> None:
    connector = made()
    connector.presence.offset.fill_(-2.0)
    connector.presence.linear[1] = 1.0
    tokens = connector(features([seen(2), seen(0), seen(1)], [EVEN] * 3))[0, [7, 8, 10, 11]]
    torch.testing.assert_close(tokens[:2], WORDS[[9, FILLER]])
    torch.testing.assert_close(tokens[2:], WORDS[[21, FILLER]])


def test_of_photographs_nobody_says_that_there_is_nothing() -> None:
    connector = made()
    connector.presence.offset.fill_(-20.0)
    far = connector.seen(features([seen(0, size=100.0)] * 3, [EVEN] * 3))
    torch.testing.assert_close(far.there, torch.ones(1, 2), atol=1e-4, rtol=0)
    near = connector.seen(features([seen(0)] * 3, [EVEN] * 3))
    torch.testing.assert_close(near.there, torch.zeros(1, 2), atol=5e-3, rtol=0)


def test_regions_have_an_analysis_and_names_of_their_own() -> None:
    connector = made()
    connector.region.linear.copy_(torch.eye(5, STAGES).roll(1, 0))  # the first number is the second
    features_of = features([seen(2), seen(0), seen(1)], [EVEN] * 3)
    assert connector.seen(features_of).shares[0].argmax(dim=-1).tolist() == [2, 1, 2]
    connector.set_names(NAMES, FILLER, classes=[2, 0, 1, -1], nothing=[9], regions=[1, 3, 0])
    shares = connector.seen(features_of).shares[0]
    assert shares.argmax(dim=-1).tolist() == [2, 3, 0]  # rows 1 and 2 of the regions' analysis
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(3))
    trusted = float(connector.seen(features_of).trusted)
    assert float(shares[1:, 2].max()) <= 1 - trusted  # what no region is named, but by the classes


def test_in_training_images_are_moved_in_the_analyses() -> None:
    still, moved = made(), made(noise=2.0)
    shown = features([seen(2), seen(0), seen(1)], [EVEN] * 3)
    assert torch.equal(still.train().seen(shown).shares, still.eval().seen(shown).shares)
    assert torch.equal(moved.eval().seen(shown).shares, still.seen(shown).shares)
    _, stages, _ = moved.shape.split(shown)
    vectors = F.normalize(moved.image.vectors(stages[:, :1]), dim=-1)
    torch.manual_seed(3)
    torch.randn(1, 2, 5)  # the regions' come first
    away = vectors + torch.randn_like(vectors) * 2.0 / 5**0.5
    trusted = moved.seen(shown).trusted[:, None]
    expected = moved.mixed(moved.image.logits(away), torch.zeros(1, 1, CLASSES), trusted)
    torch.manual_seed(3)
    torch.testing.assert_close(moved.train().seen(shown).shares[:, :1], expected)


def test_images_that_are_alike_have_a_token_that_is_alike() -> None:
    """At first the angles between these tokens are those between vectors of the analysis."""
    torch.manual_seed(0)
    stages = torch.randn(6, STAGES)
    regions = [EVEN] * 3
    connector = made()
    told = [connector(features([s.tolist()] * 3, regions))[0, -1] for s in stages]
    vectors = F.normalize(connector.image.vectors(stages), dim=-1)
    tokens = torch.stack(told)
    length = float(WORDS.norm(dim=-1).median())
    torch.testing.assert_close(tokens @ tokens.T / length**2, vectors @ vectors.T)


def test_names_are_saved_with_the_weights(tmp_path: Path) -> None:
    vision = im.VisionConfig(name="tiny-cnn", resize="squash", regions=True)
    model = im.compose(vision, "tiny-lm", Names().toy())
    connector = model.connector
    assert isinstance(connector, NamesConnector)
    connector.set_names([[97], [98, 99]], 46, classes=[0, 1, *[-1] * 8])
    connector.image.linear.normal_()
    connector.image.means.normal_()
    loaded = im.load(im.save(model, tmp_path / "model"), device="cpu", dtype=None)
    pixels = torch.randn(2, 3, *model.vision.image_size)
    with torch.no_grad():
        expected = connector(model.encode_pixels(pixels))
        torch.testing.assert_close(loaded.connector(loaded.encode_pixels(pixels)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_analysis_stays_whole_in_a_model_of_half_precision(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    vision = im.VisionConfig(name="tiny-cnn", resize="squash", regions=True)
    model = im.compose(vision, "tiny-lm", Names().toy())
    connector = model.connector
    assert isinstance(connector, NamesConnector)
    connector.set_names([[97], [98, 99]], 46)
    for fitted in (connector.image, connector.region):
        fitted.means.normal_()
        fitted.linear.normal_().mul_(1e-8)
    loaded = im.load(
        im.save(model, tmp_path / "model", dtype=dtype), device="cpu", dtype=dtype
    ).connector
    assert isinstance(loaded, NamesConnector)
    assert loaded.norm.weight.dtype == dtype
    for fitted, kept in ((connector.image, loaded.image), (connector.region, loaded.region)):
        for name, own in fitted.state_dict().items():
            assert torch.equal(kept.state_dict()[name], own), name
    features = torch.randn(2, model.vision.shape.tokens, model.vision.shape.width).to(dtype)
    with torch.no_grad():
        tokens = loaded(features)
        expected = connector(features.float())
    assert tokens.dtype == dtype
    torch.testing.assert_close(tokens.float(), expected, atol=0.05, rtol=0.05)


def test_no_pass_waits_for_what_the_device_computed() -> None:
    """Of tensors without values, whoever asks for one fails."""
    logits, scores, trusted = (torch.zeros(2, 3, *n, device="meta") for n in ([5], [CLASSES], []))
    assert made().to("meta").mixed(logits, scores, trusted).shape == (2, 3, 5)


def test_without_classes_the_analysis_is_heard_alone() -> None:
    connector = made()
    connector.set_names(NAMES, FILLER, classes=[-1, -1, -1, -1])
    shares = connector.seen(features([seen(0, size=100.0)] * 3, [[0.0, 9.0, 0.0, 0.0]] * 3)).shares
    assert int(shares[0, 0].argmax()) == 0
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        ([], [], r"got 0 names, expected 1 to 5"),
        ([[1]] * 6, [], r"got 6 names, expected 1 to 5"),
        ([[1], []], [], r"at least one word piece"),
        ([[1]], [0], r"concepts of 1 classes, expected 4"),
        ([[1], [2]], [0, 1, -1, 2], r"concept 2 of a class, expected 0 to 1, or -1"),
        ([[1], [2]], [0, 1, -2, 1], r"concept -2 of a class"),
    ],
)
def test_names_that_do_not_fit(names: list[list[int]], classes: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made().set_names(names, FILLER, classes)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([0, 4], r"got 2 concepts of regions, 0 to 4: expected at most 5 .* 0 to 3"),
        ([-1], r"got 1 concepts of regions, -1 to -1"),
        ([0] * 6, r"got 6 concepts of regions, 0 to 0: expected at most 5"),
    ],
)
def test_names_of_regions_that_do_not_fit(regions: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made().set_names(NAMES, FILLER, regions=regions)


def test_an_encoder_without_regions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set vision\.regions = true"):
        im.compose("tiny-vit", "tiny-lm", Names())
