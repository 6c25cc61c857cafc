"""`names` with a reader: a printed word takes the regions' tokens, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import isthmus as im
from isthmus import testing
from isthmus.errors import ConfigError
from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape
from isthmus.model.connectors.names import Names, NamesConnector
from isthmus.model.connectors.reading import ALPHABET

WIDTH, LETTERS = 10, len(ALPHABET)
WORDS = torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(0))
FINE = RegionShape(patches=4, count=4, stages=6, classes=4, rows=1, fine=(5, 6, 6))
SHAPE = FeatureShape(width=12, tokens=4 + 4 + 15, grid=(2, 2), regions=FINE)
OPTIONS = Names(
    concepts=6,
    pieces=3,
    others=1,
    region_pieces=1,
    region_others=0,
    dimensions=5,
    region_concepts=6,
    region_dimensions=5,
    free=1,
    heads=2,
    reader=8,
)
EVERY = {letter: number for number, letter in enumerate(f" {ALPHABET}")}
FILLER = 79
SURE, REGIONS = 3, slice(5, 11)


def made(options: Names = OPTIONS) -> NamesConnector:
    torch.manual_seed(0)
    connector = options.build(SHAPE, WIDTH, WORDS)
    connector.set_names([[11, 12], [21], [31, 32, 33]], FILLER, classes=[2, 0, 1, -1])
    for fitted in (connector.image, connector.region):
        fitted.linear.normal_(generator=torch.Generator().manual_seed(1))
        fitted.means.normal_(generator=torch.Generator().manual_seed(2))
    if connector.reader is not None:
        connector.spelling.set({**EVERY, " c": 70, "at": 71})
    return connector


def reads(
    connector: NamesConnector, monkeypatch: pytest.MonkeyPatch, words: list[str], text: list[float]
) -> None:
    """Lets the reader say these words of images, and this of how likely there is text."""
    letters = torch.zeros(len(words), 8, dtype=torch.long)
    for row, word in enumerate(words):
        letters[row, : len(word)] = torch.tensor([ALPHABET.index(c) + 1 for c in word])
    monkeypatch.setattr(connector.reader, "read", lambda fine: (letters, torch.tensor(text)))


def features(images: int) -> Tensor:
    return torch.randn(images, SHAPE.tokens, 12, generator=torch.Generator().manual_seed(3))


def plain() -> NamesConnector:
    """The same weights without a reader."""
    connector, other = made(), made(replace(OPTIONS, reader=0))
    state = connector.state_dict()
    other.load_state_dict({name: state[name] for name in other.state_dict()})
    return other


@torch.no_grad()
def test_a_word_takes_the_places_of_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = made()
    seen = features(2)
    before = plain()(seen)
    reads(connector, monkeypatch, ["cat", "28c"], [0.9, 0.51])
    tokens = connector(seen)
    pieces = [
        [70, 71, *[FILLER] * 4],
        [EVERY[" "], EVERY["2"], EVERY["8"], EVERY["c"], FILLER, FILLER],
    ]
    assert torch.equal(tokens[:, REGIONS], WORDS[torch.tensor(pieces)])
    torch.testing.assert_close(tokens[:, SURE] - before[:, SURE], connector.text.expand(2, -1))
    assert connector.text.norm() > 0.5  # so that the line above says something
    rest = [0, 1, 2, 4, 11]
    assert torch.equal(tokens[:, rest], before[:, rest])


@torch.no_grad()
def test_a_word_that_is_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = made()
    reads(connector, monkeypatch, ["12345678"], [1.0])
    kept = torch.tensor([EVERY[c] for c in " 12345"])
    assert torch.equal(connector(features(1))[0, REGIONS], WORDS[kept])


@torch.no_grad()
def test_where_nothing_is_read_all_is_as_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    connector, other = made(), plain()
    seen = features(3)
    reads(connector, monkeypatch, ["cat", "", "cat"], [0.49, 1.0, 0.99])
    tokens, before = connector(seen), other(seen)
    assert torch.equal(tokens[:2], before[:2])
    assert not torch.equal(tokens[2], before[2])
    unset = made()
    unset.spelling.spelled.zero_()
    unset.spelling._known = None  # pieces that were never told
    reads(unset, monkeypatch, ["cat"] * 3, [1.0] * 3)
    assert torch.equal(unset(seen), before)


def test_a_new_reader_leaves_the_other_weights_as_they_were() -> None:
    """Seeded alike, a connector with a reader starts from the weights of one without."""
    own, other = made().state_dict(), made(replace(OPTIONS, reader=0)).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in other.items())
    beside = {name.split(".")[0] for name in own.keys() - other.keys()}
    assert beside == {"reader", "spelling", "text"}


@torch.no_grad()
def test_the_early_map_is_what_the_reader_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = made()
    seen = features(1)
    shown: list[Tensor] = []

    def read(fine: Tensor) -> tuple[Tensor, Tensor]:
        shown.append(fine)
        return torch.zeros(1, 8, dtype=torch.long), torch.zeros(1)

    monkeypatch.setattr(connector.reader, "read", read)
    connector(seen)
    numbers = seen[0, 8:].flatten()
    assert torch.equal(shown[0][0, :, 2, 3], numbers[(2 * 6 + 3) * 5 :][:5])


def test_it_is_frozen_and_stays_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = made().train()
    assert connector.reader is not None
    assert connector.training
    assert not any(module.training for module in connector.reader.modules())
    assert not any(p.requires_grad for p in connector.reader.parameters())
    assert connector.no_weight_decay() == {"queries", "places", "text"}
    reads(connector, monkeypatch, ["cat", "cat"], [1.0, 0.0])
    (connector(features(2)) ** 2).sum().backward()
    assert connector.text.grad is not None
    assert connector.text.grad.norm() > 0
    reads(connector, monkeypatch, ["cat"], [0.0])
    connector.zero_grad()
    connector(features(1)).sum().backward()  # a gradient is there all the same, for all processes
    assert torch.equal(connector.text.grad, torch.zeros(WIDTH))


@pytest.mark.parametrize("shown", [True, False])
def test_holds_what_a_connector_must(shown: bool) -> None:
    def build(shape: FeatureShape, width: int) -> NamesConnector:
        connector = made()
        assert connector.reader is not None
        torch.nn.init.constant_(connector.reader.text.bias, 9.0 if shown else -9.0)
        return connector

    testing.check_connector(build, shape=SHAPE, width=WIDTH)


def test_what_is_read_is_saved_with_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = im.VisionConfig(name="tiny-cnn", resize="squash", regions=True, fine=8)
    model = im.compose(vision, "tiny-lm", im.Names(reader=8).toy())
    connector = model.connector
    assert isinstance(connector, NamesConnector)
    assert connector.reader is not None
    vocabulary = {chr(byte): byte for byte in range(32, 127)}
    connector.set_names([[97], [98, 99]], 46)
    connector.spelling.set({**vocabulary, "ab": 200})
    torch.nn.init.constant_(connector.reader.text.bias, 9.0)
    torch.nn.init.normal_(connector.reader.letters.weight, std=3.0)
    pixels = torch.randn(8, 3, *model.vision.image_size)
    seen = model.encode_pixels(pixels)
    for module in connector.reader.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = 1.0  # one batch tells all
    assert connector.shape.fine is not None
    connector.reader.train()(connector.shape.fine_map(seen))
    connector.reader.eval()
    is_read, pieces = connector.words_in(seen)
    assert is_read.all()
    assert (pieces[:, 0] == 32).all()  # the space in front
    assert len({tuple(row) for row in pieces.tolist()}) > 1
    loaded: Any = im.load(im.save(model, tmp_path / "model"), device="cpu", dtype=None)
    again, same = loaded.connector.words_in(loaded.encode_pixels(pixels))
    assert torch.equal(again, is_read)
    assert torch.equal(same, pieces)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.connector(loaded.encode_pixels(pixels)), connector(seen), rtol=0, atol=0
        )
    half = im.load(
        im.save(model, tmp_path / "half", dtype=torch.float16), device="cpu", dtype=None
    ).connector
    assert isinstance(half, NamesConnector)
    assert torch.equal(half.spelling.spelled, connector.spelling.spelled)


def test_features_without_an_early_map_are_refused() -> None:
    vision = im.VisionConfig(name="tiny-cnn", regions=True)
    with pytest.raises(ConfigError, match=r"reader is 8, .* set vision\.fine"):
        im.compose(vision, "tiny-lm", im.Names(reader=8).toy())
