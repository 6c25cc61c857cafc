"""What a request says of an image's detail, for a model that cuts images into tiles."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import isthmus as im
from isthmus.errors import ConfigError
from isthmus.media.fetch import Fetcher
from isthmus.model.backbones.tiny_tiles import write_tiny_tiles
from isthmus.serving.launch import application
from isthmus.serving.media import ImageReader, opened
from isthmus.serving.refusals import Refusal
from isthmus.serving.settings import ServerSettings

from .conftest import image_of, image_uri

CHAT = "/v1/chat/completions"
FAMILIES = ("idefics3", "llava_next", "llava_onevision", "internvl")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tiles(tmp_path_factory.mktemp(request.param), request.param)


def asked(detail: str | None, uri: str) -> dict[str, Any]:
    told = {"url": uri} if detail is None else {"url": uri, "detail": detail}
    parts = [{"type": "image_url", "image_url": told}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "logprobs": True}


def test_low_detail_leaves_an_image_whole(serve: Any, folder: Path) -> None:
    model, uri = im.load(folder), image_uri(3, (60, 90))
    alone = im.load(folder, image_options={"max_tiles": 1})
    expected = {
        name: im.ask(own, image_of(uri), "What?", max_new_tokens=4)
        for name, own in (("low", alone), ("high", model))
    }
    lengths = {}
    with serve(model) as running:
        for detail in ("high", "low", "auto", None, "low", "high"):  # by turns: caches are warm
            said = httpx.post(running.url + CHAT, json=asked(detail, uri)).json()
            own = expected["low" if detail == "low" else "high"]
            assert said["choices"][0]["message"]["content"] == own.text
            lengths.setdefault(said["usage"]["prompt_tokens"], set()).add(detail)
    few, many = sorted(lengths)
    assert lengths[few] == {"low"}
    assert lengths[many] == {"high", "auto", None}
    batch = alone.prepare([expected["low"].prompt], [[image_of(uri)]])
    assert few == batch.input_ids.shape[1]


def test_images_of_one_request_differ_in_detail(serve: Any, folder: Path) -> None:
    model, uri = im.load(folder), image_uri(3, (60, 90))
    tokens = []
    with serve(model) as running:
        for details in (("low", "low"), ("low", "high"), ("high", "low"), ("high", "high")):
            body = asked(details[0], uri)
            body["messages"][0]["content"] += asked(details[1], uri)["messages"][0]["content"][:1]
            said = httpx.post(running.url + CHAT, json=body).json()
            tokens.append(said["usage"]["prompt_tokens"])
    low, *mixed, high = tokens
    assert mixed == [(low + high) // 2] * 2
    assert low < high


def test_detail_says_nothing_of_images_that_are_never_cut(serve: Any) -> None:
    uri = image_uri()
    with serve() as running:
        low, high = (
            httpx.post(running.url + CHAT, json=asked(d, uri)).json() for d in ("low", "high")
        )
    assert low["choices"][0]["message"] == high["choices"][0]["message"]


def test_tiles_of_all_requests_are_counted_while_they_are_held(folder: Path) -> None:
    model, uri = im.load(folder), image_uri(3, (60, 90))
    size = opened(model, None, image_of(uri)).values.nbytes
    reader = ImageReader(partial(opened, model, None), Fetcher(()), max_kept=5 * size // 2)
    place = [("messages.0", uri)]
    kept = [asyncio.run(reader.read(place)) for _ in range(2)]
    for _ in range(2):
        with pytest.raises(Refusal, match='"low"') as refused:
            asyncio.run(reader.read(place))
        assert refused.value.status == 429
        del refused
    low = asyncio.run(reader.read(place, partial(opened, model, "low")))
    kept.pop()
    gc.collect()
    kept.append(asyncio.run(reader.read(place)))
    assert len(low) == 1
    reader.close()


def test_a_server_takes_options_of_images_with_a_name(folder: Path) -> None:
    app = application(str(folder), None, ServerSettings(), "cpu", image_options={"max_tiles": 2})
    assert app is not None
    with pytest.raises(ConfigError, match="unknown image option"):
        application(str(folder), None, ServerSettings(), "cpu", image_options={"tiles": 2})
    with pytest.raises(ConfigError, match="a model and image_options: pass them to load"):
        application(im.load(folder), None, ServerSettings(), image_options={"max_tiles": 2})
