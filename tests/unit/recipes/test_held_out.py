"""Held-out drawings of the shipped model's recipe: which drawings they are of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

FOODS = [f"1F35{i}" for i in range(6)]
STYLES = ("noto", "openmoji", "fluent-emoji-flat", "twemoji", "fxemoji", "emojione")
NOT_DRAWN = ("fxemoji", FOODS[5])
KEPT = {"test": "noto", "dev": "emojione"}
"""The drawings of a part that no record has."""


@pytest.fixture
def held_out(recipe_path: Path) -> ModuleType:
    import held_out

    return held_out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six foods of the test, one thing of dev, one that is trained; each style a shade of red."""
    things: list[dict[str, Any]] = [
        {"name": f"food {i}", "part": "test", "concepts": [c], "is": ["eat"], "unclear": []}
        for i, c in enumerate(FOODS)
    ]
    things[0]["concepts"] = [FOODS[0], "1F40A"]
    things.append({"name": "van", "part": "dev", "concepts": ["1F690"], "is": [], "unclear": []})
    things.append({"name": "cat", "part": "train", "concepts": ["1F408"], "is": [], "unclear": []})
    rows: dict[str, list[dict[str, Any]]] = {"scene-things": things}
    for shade, style in enumerate(STYLES):
        (tmp_path / "pictures" / style).mkdir(parents=True)
        for code, part in [(c, t["part"]) for t in things for c in t["concepts"]]:
            image = f"pictures/{style}/{code}.png"
            if (style, code) == NOT_DRAWN:
                continue
            Image.new("RGB", (40, 40), (200 + shade, 0, 0)).save(tmp_path / image)
            file = {"twemoji": "test-twemoji", "fxemoji": "test-fxemoji"}.get(style, "train-emoji")
            if KEPT.get(part) != style:
                row = {"image": image, "concept": code, "source": style}
                rows.setdefault(file, []).append(row)
    (tmp_path / "records").mkdir()
    for name, own in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in own)
        (tmp_path / "records" / f"{name}.jsonl").write_text(text)
    return tmp_path


def test_views_are_of_one_style_and_all_different(held_out: ModuleType, data: Path) -> None:
    records = list(held_out.views(data, "test"))
    assert Counter(r["name"] for r in records) == {f"food {i}": 9 for i in range(6)}
    assert {r["source"] for r in records} == {"twemoji"}
    seen = [Image.open(data / r["image"]) for r in records if r["name"] == "food 1"]
    assert {image.size for image in seen} == {(40, 40)}
    assert len({image.tobytes() for image in seen}) == 9
    first = [r["image"].rpartition("/")[2] for r in records if r["name"] == "food 0"]
    assert Counter(name.partition("-")[0] for name in first) == {FOODS[0]: 5, "1F40A": 4}
    dev = list(held_out.views(data, "dev"))
    assert {(r["name"], r["source"]) for r in dev} == {("van", "emojione")}


def test_views_do_not_change(held_out: ModuleType, data: Path) -> None:
    (first, *_) = held_out.views(data, "test")
    before = (data / first["image"]).read_bytes()
    (again, *_) = held_out.views(data, "test")
    assert (data / again["image"]).read_bytes() == before


def test_a_turned_view_keeps_its_corners(held_out: ModuleType) -> None:
    drawn = Image.new("RGB", (80, 80), "white")
    colours = {(0, 0): (255, 0, 0), (75, 0): (0, 255, 0), (0, 75): (0, 0, 255), (75, 75): (0, 0, 0)}
    for place, colour in colours.items():
        drawn.paste(colour, (*place, place[0] + 5, place[1] + 5))
    for seed in range(30):
        seen = np.asarray(held_out.view(drawn, np.random.default_rng(seed))).astype(int)
        for colour in colours.values():
            assert (np.abs(seen - colour).sum(axis=-1) < 150).any(), (seed, colour)


def test_styles_are_of_what_all_of_them_draw(held_out: ModuleType, data: Path) -> None:
    records = list(held_out.styles(data, "test"))
    assert Counter(r["name"] for r in records) == {f"food {i}": 3 for i in range(5)}
    assert {r["source"] for r in records} == {"twemoji", "fxemoji", "noto"}
    dev = list(held_out.styles(data, "dev"))
    assert {r["source"] for r in dev} == {"emojione", "openmoji", "fluent-emoji-flat"}


def test_kinds_are_those_of_enough_things(held_out: ModuleType, data: Path) -> None:
    records = list(held_out.kinds(data, "test"))
    assert [(r["name"], r["source"]) for r in records] == [("eat", "twemoji")] * 6
    assert list(held_out.kinds(data, "dev")) == []
