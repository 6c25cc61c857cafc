"""The page in a real browser: an image goes in, an answer streams out."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.serving.chat.session import Reply, Session
from isthmus.serving.completions import make_service
from isthmus.serving.settings import ServerSettings

SRC = Path(im.__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 240_000

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser(expected: str) -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    dual = im.DualEncoder.join("tiny-vit", "tiny-text", width=12)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return {
        "model": im.save(model, folder / "mine"),
        "dual": im.save(dual, folder / "dual"),
        "image": folder / "noise.png",
    }


@pytest.fixture(scope="module")
def address(parts: dict[str, Path]) -> Iterator[str]:
    command = [sys.executable, "-m", "isthmus.cli", "chat", str(parts["model"]), "--port", "0"]
    command += ["--dual-encoder", str(parts["dual"]), "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("talk to it at http://127.0.0.1:")
        yield line.split()[-1]
        process.terminate()


@pytest.fixture(scope="module")
def expected(parts: dict[str, Path]) -> str:
    """What the model says of the image; asked before Playwright runs an event loop."""

    async def whole(service: Any) -> Reply:
        shown = [parts["image"].read_bytes()]
        *_, last = [reply async for reply in Session().ask(service, "What is it?", shown)]
        return last

    service = make_service(im.load(parts["model"]), ServerSettings())
    try:
        return asyncio.run(whole(service)).answer
    finally:
        service.engine.close(drain=False)


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def test_a_image_a_question_an_answer(
    browser: Any, address: str, parts: dict[str, Path], expected: str
) -> None:
    expect = sync_api.expect
    page = browser.new_context(locale="en-GB").new_page()
    page.set_default_timeout(PATIENCE_MS)
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address)
    page.locator("#question input[type=file]").set_input_files(parts["image"])
    expect(page.locator("#question img")).to_be_visible(timeout=PATIENCE_MS)
    page.fill("#question textarea", "What is it?")
    page.keyboard.press("Enter")
    said = page.locator("#talk .bot").last
    # an untrained model says anything: what a browser makes of control characters is its own
    ends = time.monotonic() + PATIENCE_MS / 1000
    while letters(said.inner_text()) != letters(expected) and time.monotonic() < ends:
        page.wait_for_timeout(100)
    assert letters(said.inner_text()) == letters(expected) != ""
    expect(page.locator("#talk img").first).to_be_visible()

    # a worked example of it
    page.fill("#right textarea, #right input", "noise")
    page.fill("#why textarea, #why input", "It has all colours.")
    page.get_by_role("button", name="Add as an example").click()
    expect(page.locator("#shots img")).to_have_count(1, timeout=PATIENCE_MS)

    # in steps, which are folded
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#talk .bot")).to_have_count(0, timeout=PATIENCE_MS)
    page.locator("#steps input").check()
    page.fill("#question textarea", "And why?")
    page.keyboard.press("Enter")
    expect(page.locator("#talk").get_by_text("Steps", exact=False).first).to_be_visible(
        timeout=PATIENCE_MS
    )

    # labels
    page.get_by_role("tab", name="Labels").click()
    page.locator("#sorted input[type=file]").set_input_files(parts["image"])
    page.fill("#names textarea", "cat\ndog")
    page.get_by_role("button", name="Sort").click()
    classifier = im.ZeroShotClassifier(im.load(parts["dual"]), ["cat", "dog"], "one", cache=False)
    best = str(classifier.predict([parts["image"]])[0])
    expect(page.locator("#verdict h2")).to_have_text(best, timeout=PATIENCE_MS)
    expect(page.locator("#bars")).to_contain_text("%")

    # the other language, all of it
    page.get_by_label("한국어").click()
    expect(page.get_by_role("button", name="분류하기")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_role("tab", name="질문")).to_be_visible()

    elsewhere = [u for u in fetched if not u.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


def test_on_a_phone_in_korean(browser: Any, address: str) -> None:
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, locale="ko-KR", is_mobile=True, has_touch=True
    )
    page = phone.new_page()
    page.goto(address)
    sync_api.expect(page.get_by_text("단계별로 생각하기")).to_be_visible(timeout=PATIENCE_MS)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window == 390
    box = page.locator("#question").bounding_box()
    assert box["y"] + box["height"] <= 844  # the question is on the first screen


def test_what_is_no_image_is_said_and_the_page_goes_on(
    browser: Any, address: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page = browser.new_context(locale="en-GB").new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.locator("#question input[type=file]").set_input_files(tmp_path / "broken.png")
    page.locator("#question .thumbnail-item").first.wait_for()
    page.fill("#question textarea", "What is it?")
    page.keyboard.press("Enter")
    said = page.locator("#talk .bot").last
    sync_api.expect(said).to_contain_text("This did not work", timeout=PATIENCE_MS)
    page.locator("#question textarea").fill("Hello?")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#talk .bot")).to_have_count(2, timeout=PATIENCE_MS)
