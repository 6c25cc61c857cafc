"""Parts of one's own by name: a module on the path, an entry point of an installed package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isthmus as im
from isthmus.config.file import model_from_mapping, run_from_mapping, to_mapping
from isthmus.config.registry import CONNECTORS, Registry
from isthmus.errors import CheckpointError, ConfigError
from isthmus.media import kinds
from isthmus.training.smoke import smoke

CODE = '''
from dataclasses import dataclass, replace

from torch import nn

from isthmus.config.base import Config, Count


class MeanConnector(nn.Module):
    """The mean of all patches, mapped to a few tokens."""

    def __init__(self, in_width, width, tokens):
        super().__init__()
        self.num_tokens, self.width = tokens, width
        self.map = nn.Linear(in_width, tokens * width)

    def forward(self, features):
        return self.map(features.mean(1)).unflatten(1, (self.num_tokens, self.width))


@dataclass(frozen=True, kw_only=True)
class Mean(Config):
    """The mean of all patches."""

    tokens: Count = 3

    def build(self, shape, width, embeddings=None):
        return MeanConnector(shape.width, width, self.tokens)

    def toy(self):
        return replace(self, tokens=1)


class Nothing:
    pass
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `their_parts` that can be imported from `tmp_path/site`."""
    folder = tmp_path / "site" / "their_parts"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "mean.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    for name in [n for n in sys.modules if n.startswith("their_parts")]:
        del sys.modules[name]


@pytest.fixture
def entry_point(package: Path) -> None:
    """The metadata of an installed distribution that offers the package's connector."""
    metadata = package / "their_parts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[isthmus.connectors]\nmean = their_parts.mean:Mean\n"
    )


def tables(kind: str, **options: Any) -> dict[str, Any]:
    return {
        "vision": {"name": "tiny-vit"},
        "language": {"name": "tiny-lm"},
        "connector": {"type": kind, **options},
    }


def test_a_connector_of_a_module_is_named_in_a_configuration(package: Path) -> None:
    run = run_from_mapping(tables("their_parts.mean:Mean"), ["connector.tokens=2"])
    assert run.model.connector.tokens == 2
    assert to_mapping(run.model)["connector"] == {"type": "their_parts.mean:Mean", "tokens": 2}
    assert model_from_mapping(to_mapping(run.model)) == run.model
    assert smoke(run)[0].model.connector.tokens == 1
    named = run_from_mapping(tables("linear"), ["connector.type=their_parts.mean:Mean"])
    assert named.model.connector.tokens == 3
    with pytest.raises(ConfigError, match=r"connector\.tokens = 0: expected at least 1"):
        run_from_mapping(tables("their_parts.mean:Mean", tokens=0))


def test_it_is_saved_and_loaded_with_its_model(package: Path, tmp_path: Path) -> None:
    from their_parts.mean import Mean  # type: ignore[import-not-found]

    model = im.compose("tiny-vit", "tiny-lm", Mean(tokens=2))
    again = im.load(im.save(model, tmp_path / "model"))
    assert again.config == model.config
    for name, tensor in model.connector.state_dict().items():
        assert tensor.equal(again.connector.state_dict()[name])


@pytest.mark.usefixtures("entry_point")
def test_an_entry_point_is_a_name_like_any_other(tmp_path: Path) -> None:
    assert "mean" in CONNECTORS.names()
    model = im.compose("tiny-vit", "tiny-lm", CONNECTORS.find("mean")(tokens=2))
    assert to_mapping(model.config)["connector"] == {"type": "mean", "tokens": 2}
    assert im.load(im.save(model, tmp_path / "model")).config == model.config
    with pytest.raises(ConfigError, match='unknown connector "maen": did you mean "mean"'):
        CONNECTORS.find("maen")


def test_a_name_of_ours_is_not_taken_over(entry_point: None, package: Path) -> None:
    offers = package / "their_parts-1.0.dist-info" / "entry_points.txt"
    offers.write_text("[isthmus.connectors]\nlinear = their_parts.mean:Mean\n")
    assert CONNECTORS.find("linear") is im.Linear


KINDS_CODE = """
class Sound:
    tag, keys, parts, endings = "<sound>", ("sound",), ("sound",), (".wav",)

    @staticmethod
    def open(data):
        return data


class Half:
    tag, open = "<half>", Sound.open
"""


def test_a_broken_package_costs_its_own_kinds_and_no_reading(
    entry_point: None, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package / "their_parts" / "kinds.py").write_text(KINDS_CODE)
    (package / "their_parts" / "broken.py").write_text("import no_such_module")
    for name, offers in {
        "their_parts": "sound = their_parts.kinds:Sound",
        "broken-parts": "smell = their_parts.broken:Smell\ntaste = their_parts.broken:Taste",
        "half-parts": "half = their_parts.kinds:Half",
    }.items():
        metadata = package / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[isthmus.kinds]\n{offers}\n")
    kinds._offered.cache_clear()
    try:
        assert sorted(kinds.kinds()) == ["clip", "image", "sound"]
        assert kinds.kind_named("a.wav") == "sound"
        assert kinds.kind_named("a.png") == "image"
    finally:
        kinds._offered.cache_clear()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert any("broken-parts are left out" in s and "no_such_module" in s for s in said)
    assert any("half-parts are left out" in s and "no keys and no parts" in s for s in said)


def test_a_saved_model_whose_code_is_not_there_says_so(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from their_parts.mean import Mean

    folder = im.save(im.compose("tiny-vit", "tiny-lm", Mean()), tmp_path / "model")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(package)])
    for name in [n for n in sys.modules if n.startswith("their_parts")]:
        del sys.modules[name]
    with pytest.raises(CheckpointError, match=r"their_parts\.mean:Mean.*install the package"):
        im.load(folder)


def test_code_beside_a_saved_model_is_not_run(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a person who goes into the folder that they downloaded and starts Python there."""
    from their_parts.mean import Mean

    folder = im.save(im.compose("tiny-vit", "tiny-lm", Mean()), tmp_path / "model")
    (package / "their_parts").rename(folder / "their_parts")
    for name in [n for n in sys.modules if n.startswith("their_parts")]:
        del sys.modules[name]
    (folder / "their_parts" / "__init__.py").write_text("raise SystemExit('run')\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(CheckpointError, match=r"beside the saved model .* is not run"):
        im.load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_parts.mean:Nothing", 'has no method "build"'),
        ("their_parts.mean:Absent", r"cannot import .*AttributeError"),
        ("their_parts.absent:Mean", r"cannot import .*ModuleNotFoundError.*PYTHONPATH"),
        ("their_parts.mean:MeanConnector", 'has no method "build"'),
        (":Mean", "expected package.module:Class"),
        ("their_parts.mean:", "expected package.module:Class"),
    ],
)
def test_what_is_no_part(package: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONNECTORS.find(name)


def test_a_name_is_given_once() -> None:
    registry = Registry("thing", package="isthmus.reports", group="isthmus.things")
    registry.register("one")(len)
    with pytest.raises(ConfigError, match='the thing "one" is there twice'):
        registry.register("one")(print)


def test_a_class_inside_of_a_function_has_no_name() -> None:
    class Local:
        def build(self) -> None: ...

    with pytest.raises(ConfigError, match="define it at the top of a module"):
        CONNECTORS.name_of(Local)
