"""The page of an explanation: whole, self-contained, and with a panel for each token."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.explaining.drawing import DENSEST, gate_chart, png
from isthmus.explaining.page import explained_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "input", "img", "line", "rect", "br"}


class Elements(HTMLParser):
    """Counts elements, and fails where they do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.classes.update((dict(attributes).get("class") or "").split())
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def explained(connector: Any, fusion: Any, count: int = 1, **options: Any) -> im.Explanation:
    model = im.compose("tiny-vit", "tiny-lm", connector, fusion)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    images = [Image.effect_noise((40, 40), 90).convert("RGB") for _ in range(count)]
    return im.explain(model, images, "Is 1 < 2 & <b>3</b>?", **{"max_new_tokens": 4, **options})


INLINE = (im.Linear(), im.Inline())
GATED = (
    im.Resampler(latents=5, depth=2, heads=2, head_dim=8),
    im.CrossAttention(every=2, heads=2, head_dim=8),
)
BARS = (
    im.Resampler(latents=4, depth=1, heads=2, head_dim=8, max_frames=2),
    im.CrossAttention(every=2, heads=2, head_dim=8, inline=True),
)


@pytest.mark.parametrize("parts", [INLINE, GATED, BARS], ids=["inline", "gated", "both"])
def test_a_page_is_whole_and_needs_nothing_else(parts: Any) -> None:
    found = explained(*parts, count=2, heads=True)
    text = explained_page(found)
    elements = Elements(text)
    picks = 1 if len(found.tokens) == 1 else 1 + len(found.tokens)
    assert elements.tags["label"] == elements.classes["panel"] == picks
    assert elements.tags["script"] == elements.tags["link"] == 0
    for address in re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)\)", text):
        assert "".join(address).startswith("data:image/")
    assert "http://" not in text
    assert "https://" not in text
    assert "<b>3</b>" not in text
    assert any("Is 1 < 2 & <b>3</b>?" in told for told in elements.texts)
    assert text.count("data:image/jpeg") == 2  # each picture once, however many maps lie on it


def test_an_inline_page_shows_maps_layers_and_words_on_their_grid() -> None:
    found = explained(*INLINE, heads=True)
    elements = Elements(explained_page(found))
    picks = elements.classes["panel"]
    # attention and what is covered; then four layers, and four heads of each
    assert elements.classes["small"] == picks * (4 + 4 * 4)
    assert elements.classes["over"] - elements.classes["small"] == picks * 3
    assert elements.classes["near"] == 5  # a grid for the input and behind each layer
    assert elements.classes["bars"] == elements.classes["gates"] == 0
    assert "What visual tokens are made of" not in elements.texts


def test_a_gated_page_shows_gates_and_what_latents_are_made_of() -> None:
    found = explained(*GATED)
    elements = Elements(explained_page(found))
    assert elements.classes["gates"] == 1
    assert "What visual tokens are made of" in elements.texts
    assert elements.classes["small"] == elements.classes["panel"] * 2 + 5
    assert found.blocks is not None
    gate = found.blocks.gates[0]["attention"]
    assert f"before layer 0, gate {gate:.2g}" in elements.texts
    assert elements.classes["near"] == 0  # visual tokens are no vectors of the language model


def test_visual_tokens_that_are_no_places_are_bars_with_their_labels() -> None:
    vision = im.VisionConfig(name="tiny-cnn", regions=True)
    model = im.compose(vision, "tiny-lm", im.Names().toy(), im.Inline())
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    found = im.explain(model, image, "What?", max_new_tokens=1)
    elements = Elements(explained_page(found))
    assert elements.classes["bars"] == 1
    assert elements.classes["strip"] == model.connector.num_tokens
    assert {"how sure", "top left: place", "analysis"} <= set(elements.texts)


def test_a_map_s_pixels_are_its_values() -> None:
    uri = png(torch.tensor([[0.0, 0.5], [1.0, -1.0]]))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (2, 2)
    dense = [image.getpixel(place)[3] for place in ((0, 0), (1, 0), (0, 1), (1, 1))]  # type: ignore[index]
    most = round(255 * DENSEST)
    assert dense == [0, round(255 * DENSEST / 2), most, most]
    assert image.getpixel((0, 1))[:3] == (255, 106, 0)  # type: ignore[index]
    assert image.getpixel((1, 1))[:3] == (40, 120, 255)  # type: ignore[index]
    faint = Image.open(io.BytesIO(base64.b64decode(png(torch.ones(1, 1), 10.0).partition(",")[2])))
    assert faint.getpixel((0, 0))[3] == round(255 * DENSEST / 10)  # type: ignore[index]


def test_gates_are_bars_on_both_sides_of_zero() -> None:
    text = gate_chart([3, 7], [{"attention": 0.5, "ffw": -1.0}, {"attention": 0.0, "ffw": 1.0}])
    bars = [
        (float(y), float(height))
        for y, height in re.findall(r'<rect [^>]* y="([\d.]+)" width="\d+" height="([\d.]+)"', text)
    ]
    middle = 12 + 80
    assert bars == [(middle - 40, 40), (middle, 80), (middle - 1, 1), (middle - 80, 80)]
    assert "layer 3: attention 0.500, ffw -1.000; layer 7" in text


def test_picking_a_token_shows_its_panel(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    found = explained(*INLINE)
    assert len(found.tokens) > 1
    (tmp_path / "page.html").write_text(explained_page(found), encoding="utf-8")
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if browser_path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, java_script_enabled=False)
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator(".p0").is_visible()
        assert not page.locator(".p2").is_visible()
        page.locator('label[for="t2"]').click()
        assert page.locator(".p2").is_visible()
        assert not page.locator(".p0").is_visible()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".p1").is_visible()
        wide = page.locator("body").bounding_box()
        assert wide["width"] <= 390
        browser.close()
