"""What the site makes from the code: every key, verb and name, and links that leave docs/."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import isthmus
from isthmus.cli import app
from isthmus.config.base import Config
from isthmus.config.model import PARTS, DataConfig, TrainConfig

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from site_pages import api, commands, configuration, figure, links, rooms  # noqa: E402


def documented() -> list[type[Any]]:
    """Every class with a table in the configuration reference."""
    named = [cls for tables in configuration.TABLES.values() for _, cls in tables]
    return [*named, *(c for registry in PARTS.values() for c in registry.built_in().values())]


@pytest.mark.parametrize("cls", documented(), ids=lambda c: c.__name__)
def test_every_key_says_what_it_is(cls: type[Any]) -> None:
    keys = list(configuration.keys_of(cls))
    assert [name for name, *_ in keys] == [f.name for f in dataclasses.fields(cls)]
    assert [name for name, *_, meaning in keys if not meaning] == []


def test_every_configuration_of_a_file_has_a_table() -> None:
    reached: set[type[Any]] = set()
    waiting = documented()
    while waiting:
        cls = waiting.pop()
        reached.add(cls)
        for field in dataclasses.fields(cls):
            for own in Config.__subclasses__():
                if own.__name__ in str(field.type) and own not in reached:
                    waiting.append(own)
    assert reached == set(documented())


def test_types_and_defaults_are_those_of_the_code() -> None:
    keys = {name: (kind, default) for name, kind, default, _ in configuration.keys_of(TrainConfig)}
    assert keys["steps"] == ("whole number, at least 1", "default `1000`")
    assert keys["final_lr"] == ("number, at least 0 and at most 1", "default `0.1`")
    assert keys["sharding"] == ('`"ddp"` or `"fsdp"`', 'default `"ddp"`')
    assert keys["micro_batch_size"] == ("whole number, at least 1", "not set")
    path = next(configuration.keys_of(DataConfig))
    assert path[:3] == ("path", "text", "required")


def test_every_verb_and_option_is_there() -> None:
    found = commands.verbs()
    own = {c.name for c in app.registered_commands} - {None}
    assert own <= set(found)
    assert "data check" in found
    page = commands.pages()
    for name in found:
        assert f"## isthmus {name} {{" in page
    for name, function in found.items():  # what Typer itself offers, and nothing else
        command = typer.main.get_command(app)
        for word in name.split():
            command = command.commands[word]
        offered = {p.opts[0] for p in command.params if p.opts[0].startswith("--")} - {"--help"}
        told = {p.name.split()[0] for p in commands.parameters(function) if p.is_option}
        assert told == offered, name
    ask = {p.name for p in commands.parameters(found["ask"])}
    assert {"IMAGE... QUESTION", "--model TEXT", "--json", "--shots PATH"} <= ask
    check = {p.name: p for p in commands.parameters(found["data check"])}
    assert check["--decode / --no-decode"].notes == "on unless it is said"


def test_every_public_name_is_listed_once_with_a_line() -> None:
    found = [name for names in api.public_names().values() for name in names]
    assert sorted(name for name, _ in found) == sorted(isthmus.__all__)
    assert [name for name, about in found if not about] == []


def test_the_rooms_are_those_of_the_architecture_test() -> None:
    found = {room.name: room for room in rooms.rooms()}
    assert set(found) == {name for names in rooms.layers() for name in names}
    for room in found.values():
        assert room.about, room.name
        assert all(found[other].row < room.row for other in room.imports), room.name
    assert found["errors"].imports == ()
    assert "model" in found["generation"].imports


def test_a_station_that_is_gone_is_an_error() -> None:
    gone = dataclasses.replace(figure.STATIONS[0], cls="NoSuchMedium")
    with pytest.raises(ValueError, match="has no NoSuchMedium"):
        figure._inside(gone)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("[a](classify.md#x)", "docs/audit.md", "[a](classify.md#x)"),
        ("[a](../CONTRIBUTING.md)", "docs/faq.md", "[a](CONTRIBUTING.md)"),
        ("[a](../README.md)", "docs/faq.md", "[a](index.md)"),
        ("[a](README.md)", "README.ko.md", "[a](index.md)"),
        (
            '| <img src="examples/cat.jpg" height="60" alt="a cat"> |',
            "README.ko.md",
            '| ![a cat](examples/cat.jpg){ height="60" } |',
        ),
        (
            '<img src="images/chat.png" width="640" alt="the page">',
            "docs/explain.md",
            '![the page](images/chat.png){ width="640" }',
        ),
        ("[a](../../architecture.md)", "docs/lecture/ko/x.md", "[a](../../architecture.md)"),
        ("[a](../../docs/results.md)", "recipes/tiny/README.md", "[a](../../results.md)"),
        ("[a](../src/isthmus/errors.py)", "docs/faq.md", "a"),
        ("[a](https://example.org/x.md)", "docs/faq.md", "[a](https://example.org/x.md)"),
        ("`[a](../CONTRIBUTING.md)`", "docs/faq.md", "`[a](../CONTRIBUTING.md)`"),
        ("```\n[a](../CONTRIBUTING.md)\n```", "docs/faq.md", "```\n[a](../CONTRIBUTING.md)\n```"),
    ],
)
def test_links_lead_to_where_the_site_has_the_file(text: str, place: str, expected: str) -> None:
    assert links.rewritten(text, place, ROOT)[0] == expected
