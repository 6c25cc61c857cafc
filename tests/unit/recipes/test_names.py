"""What the shipped model's names are fitted with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isthmus.model.analysis import Presence

ROWS = [
    {"name": "cat", "names": ["cat", "tabby"], "concept": "A", "source": "noto"},
    {"name": "tabby cat", "names": ["tabby cat", "tabby"], "concept": "B", "source": "noto"},
    {"name": "tram", "names": ["tram"], "concept": "C", "source": "noto"},
    {"name": "tram", "names": ["tram"], "concept": "D", "source": "noto"},
    {"name": "pie", "names": ["pie"], "concept": "E", "source": "openmoji"},
    {"name": "mouser", "names": ["mouser"], "concept": "G", "source": "openmoji-extra"},
]


def thing(name: str, part: str, concept: str, own: str, *more: str, **rest: Any) -> dict[str, Any]:
    told = {"name": name, "names": [name, *more], "part": part, "concepts": [concept]}
    return told | {"is": [own], "unclear": [], **rest}


LISTING = [
    thing("cat", "train", "A", "animal"),
    thing("tabby", "dev", "F", "animal", "mouser"),
    thing("tram", "train", "C", "vehicle"),
    thing("streetcar", "test", "D", "vehicle"),
    thing("pie", "train", "E", "eat", unclear=["wear"]),
]


@pytest.fixture
def recipe(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe's modules."""
    import fit_names
    import parts

    monkeypatch.setattr(parts, "listing", lambda root: LISTING)
    return SimpleNamespace(fit=fit_names, parts=parts)


def test_no_episode_shows_what_is_held_out_under_any_name(recipe: Any) -> None:
    kept = list(recipe.parts.without_held_out(ROWS, Path()))
    assert [row["concept"] for row in kept] == ["C", "E"]


def test_rules_are_of_things_that_are_clearly_one_kind(recipe: Any) -> None:
    kept = list(recipe.parts.of_categories(ROWS, Path()))
    assert [(row["concept"], row["name"]) for row in kept] == [("C", "vehicle")]


def test_ridge_regression_is_drawn_to_zero_by_its_penalty(recipe: Any) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5000, 3, dtype=torch.float64).float()
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    wanted = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    aims = inputs @ wanted.T + torch.tensor([7.0, -5.0])
    weights, centre = recipe.fit.ridge(inputs, aims, 0.0)
    torch.testing.assert_close(weights, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(centre, torch.tensor([7.0, -5.0]), atol=1e-3, rtol=0)
    halved, _ = recipe.fit.ridge(inputs, aims, 1.0)
    torch.testing.assert_close(halved, wanted / 2, atol=0.1, rtol=0)


def test_whether_anything_is_there_is_told_by_a_line(recipe: Any) -> None:
    torch.manual_seed(0)
    stages = torch.randn(400, 12) * torch.linspace(0.5, 3, 12) + 4
    held = stages @ torch.randn(12) > 1
    drawn = [("a name", "A", "noto") if there else None for there in held]
    presence = Presence(12)
    recipe.fit.solve_presence(presence, recipe.fit.Parts(stages[:300], drawn[:300]))
    told = presence(stages[300:]) > 0.5
    assert float((told == held[300:]).float().mean()) > 0.95
    centre = presence(stages[:300].mean(0))
    share = 2 * float(held[:300].float().mean()) - 1
    assert float(centre.logit()) == pytest.approx(recipe.fit.CERTAIN * share, abs=1e-3)


def test_regions_are_grouped_by_the_name_that_is_drawn(recipe: Any) -> None:
    drawn = [("cat", "A", "noto"), None, ("tram", "C", "noto"), ("cat", "A", "openmoji")]
    found = recipe.fit.regions_by_name(recipe.fit.Parts(torch.zeros(4, 1), drawn))
    assert found == {"cat": [0, 3], "tram": [2]}


def test_regions_are_right_where_their_names_are(recipe: Any) -> None:
    """Three concepts along three directions; of four drawings three are right, one is second."""
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 1]])
    there = torch.tensor([0.9, 0.9, 0.9, 0.2, 0.1])
    connector = SimpleNamespace(
        region=SimpleNamespace(vectors=lambda stages: stages),
        presence=lambda stages: there,
        region_logits=lambda own: own,
    )
    drawn = [("cat", "A", "noto"), ("tram", "C", "noto"), ("cat", "A", "noto")]
    drawn += [("pie", "E", "noto"), None]
    parts, names = recipe.fit.Parts(vectors, drawn), ["cat", "tram", "pie"]
    found = recipe.fit.accuracy_of_regions(connector, parts, names)
    assert found["first"] == 3 / 4
    assert found["of three"] == 1
    assert abs(found["empty or not"] - 4 / 5) < 1e-6


def test_places_start_as_the_mean_of_their_words(recipe: Any) -> None:
    words = torch.randn(9, 4)
    connector = SimpleNamespace(places=torch.zeros(5, 4), embeddings=words)
    pieces = {" top left": [1, 2], " top right": [1, 3], " bottom left": [4, 2]}
    pieces |= {" bottom right": [4, 3], " middle": [5]}
    model = SimpleNamespace(language=SimpleNamespace(encode=lambda text: tuple(pieces[text])))
    recipe.fit.name_places(connector, model)
    torch.testing.assert_close(connector.places[2], (words[4] + words[2]) / 2)
    torch.testing.assert_close(connector.places[4], words[5])


@pytest.mark.parametrize(
    ("name", "file", "above", "glance"),
    [
        ("german shepherd", "05", ["hound", "dog"], "dog"),  # a kind of dog is no glance's name
        ("bald eagle", "05", ["eagle", "bird"], "eagle"),  # the nearest
        ("ostrich", "05", ["bird"], None),  # looks like no other bird
        ("wombat", "05", [], None),
        ("grand piano", "06", ["piano"], None),  # no animal
    ],
)
def test_an_animal_has_a_name_at_a_glance(
    recipe_path: Path, name: str, file: str, above: list[str], glance: str | None
) -> None:
    import imagenet

    net: Any = SimpleNamespace(synsets={"1": (file, [name], [])})
    assert imagenet.glance_name(name, "1", above, net) == glance


def test_a_class_is_called_as_it_is_drawn_or_at_a_glance(recipe: Any) -> None:
    drawn = {"hen": [0], "dog": [1]}
    rows = [("hen", "bird"), ("pug", "dog"), ("coho", "fish"), ("zebra", None)]
    said = [recipe.fit.said_of({"name": n, "glance": g}, drawn) for n, g in rows]
    assert said == ["hen", "dog", "fish", "zebra"]
