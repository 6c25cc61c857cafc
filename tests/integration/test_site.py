"""The documentation site: it builds without a warning, asks no other host, is searched."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isthmus

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What a browser fetches by itself: not the addresses of links that a reader may follow
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|image|use)\b[^>]*?\b(?:src|href|data|srcset)=["']?(?://|https?:)[^"'\s>]*"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*?\bhref=["']?(?://|https?:)[^"'\s>]*""",
    re.IGNORECASE,
)
STYLED = re.compile(r"""(?:@import\s*|url\()\s*["']?(?://|https?:)[^"')\s]*""", re.IGNORECASE)

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    told = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(isthmus.__file__).parents[1]),
            "NO_MKDOCS_2_WARNING": "1",
        },
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return folder


def asked(text: str, *, style: bool = False) -> list[str]:
    """What a page or a style sheet asks other hosts for."""
    return STYLED.findall(text) if style else [*FETCHED.findall(text), *STYLED.findall(text)]


def test_no_page_asks_another_host(site: Path) -> None:
    found = {
        str(path.relative_to(site)): asked(
            path.read_text(encoding="utf-8"), style=path.suffix == ".css"
        )
        for path in site.rglob("*")
        if path.suffix in (".html", ".css", ".svg")
    }
    assert len(found) > 100
    assert {place: hosts for place, hosts in found.items() if hosts} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel=stylesheet href=https://fonts.example/css>",
        '<img alt="" src="//example.org/x.png">',
        "<style>@import 'https://fonts.example/css'</style>",
        "<style>a{background:url(https://example.org/x.png)}</style>",
    ],
)
def test_the_test_of_hosts_can_fail(text: str) -> None:
    assert asked(text)


def test_a_link_for_readers_is_no_request() -> None:
    assert not asked('<a href="https://arxiv.org/abs/2204.14198">paper</a> <img src="x.png">')


def test_every_public_name_has_a_page(site: Path) -> None:
    pages = site / "reference" / "api"
    found = {p.parent.name for p in pages.glob("*/*/index.html")}
    assert found == set(isthmus.__all__)
    folded = [str(p.parent).lower() for p in pages.glob("*/*/index.html")]
    assert len(set(folded)) == len(folded)  # file systems that fold case
    for page in pages.glob("*/*/index.html"):
        name = page.parent.name
        assert f'id="isthmus.{name}"' in page.read_text(encoding="utf-8"), name


def test_the_references_are_whole(site: Path) -> None:
    configuration = (site / "reference" / "configuration" / "index.html").read_text("utf-8")
    for key in ("train.steps", "connector.resampler.latents", "vision.feature-layer", "data.path"):
        assert f'id="{key}"' in configuration or f'id="{key.replace("-", "_")}"' in configuration
    commands = (site / "reference" / "commands" / "index.html").read_text("utf-8")
    for anchor in ("ask-option-model", "data-check", "doctor-option-json"):
        assert f'id="{anchor}"' in commands
    assert "made: " not in configuration + commands


def test_the_figure_is_in_the_page(site: Path) -> None:
    page = (site / "architecture" / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg class=figure") + page.count('<svg class="figure"') == 1
    for word in ("cross_attention", "qformer", ">serving<", ">errors<"):
        assert word in page


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("비전 인코더", "lecture/ko/"),
        ("교차 어텐션", "lecture/ko/"),
        ("언어 모델", "lecture/ko/"),  # the page has it with a particle: 언어 모델은
        ("인코더를", "lecture/ko/"),  # a particle that the page has not
        ("이중 인코더에서", "lecture/ko/"),
        ("resampler", "reference/api/settings/Resampler/"),
        ("--dual-encoder", "reference/commands/"),
    ],
)
def test_a_search_finds_its_page_and_asks_no_other_host(
    browser: Any, address: str, query: str, page: str
) -> None:
    view = browser.new_page()
    requests: list[str] = []
    view.on("request", lambda request: requests.append(request.url))
    view.goto(f"{address}?q={query}")
    view.wait_for_selector(".md-search-result__item a", state="attached", timeout=60_000)
    links = view.eval_on_selector_all(
        ".md-search-result__item a", "found => found.map(link => link.href)"
    )
    assert any(page in link for link in links), links
    own = (address, "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []
    view.close()


@pytest.mark.parametrize("page", ["", "classify/", "reference/configuration/", "architecture/"])
def test_a_page_fits_a_phone(browser: Any, address: str, page: str) -> None:
    view = browser.new_page(viewport={"width": 390, "height": 844})
    view.goto(f"{address}{page}")
    assert view.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    view.close()
