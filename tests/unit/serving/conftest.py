"""A tiny model, a server of it on a free port, and images as data URIs."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.serving.app import create_app
from isthmus.serving.run import listen, server_of
from isthmus.serving.settings import ServerSettings
from isthmus.testing import open_gates


def image_uri(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> str:
    """An image of noise as a data URI."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_of(uri: str) -> Image.Image:
    """The image again."""
    return im.open_image(base64.b64decode(uri.partition(",")[2]))


def tiny_model(connector: Any = None, fusion: Any = None) -> Any:
    """A model that sees its images and writes what can be printed, on one line, without end."""
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", connector or im.Linear(), fusion or im.Inline())
    open_gates(made)
    mute = torch.ones(made.language.vocab_rows, dtype=torch.bool)
    mute[32:127] = False

    def readable(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(
            torch.nn.functional.pad(mute, (0, logits.shape[-1] - len(mute)), value=True), -1e4
        )

    made.language.output_embedding.register_forward_hook(readable)
    return made


def tiny_dual() -> Any:
    torch.manual_seed(0)
    return im.DualEncoder.join("tiny-vit", "tiny-text", width=12)


@dataclass
class Running:
    """A server that runs."""

    url: str
    port: int
    app: Any
    server: Any
    thread: threading.Thread


@contextlib.contextmanager
def serving(app: Any, settings: ServerSettings) -> Iterator[Running]:
    """The application on a real server at a free port."""
    listening = listen(settings)
    port = listening.getsockname()[1]
    logger = logging.getLogger("isthmus")
    logs = logger.level, logger.handlers[:]
    server = server_of(app, settings, "error")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{port}", port, app, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        logger.setLevel(logs[0])  # a server sets up logging, other tests listen to it
        logger.handlers[:] = logs[1]
        assert not thread.is_alive()


@pytest.fixture(scope="package")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="package")
def dual() -> Any:
    return tiny_dual()


@pytest.fixture(scope="package")
def running(model: Any, dual: Any) -> Iterator[Running]:
    """One server for all tests that do not break it."""
    settings = ServerSettings(port=0, model_name="tiny", dual_encoder_name="clip", api_key="key")
    with serving(create_app(model, dual_encoder=dual, settings=settings), settings) as found:
        yield found


@pytest.fixture
def image() -> str:
    return image_uri()


Make = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture
def serve(model: Any) -> Make:
    """Servers with settings of their own."""

    @contextlib.contextmanager
    def make(model_: Any = None, dual_encoder: Any = None, **options: Any) -> Iterator[Running]:
        more = {k: options.pop(k) for k in ("fetcher", "engine") if k in options}
        settings = ServerSettings(**{"port": 0, "model_name": "tiny", **options})
        app = create_app(model_ or model, dual_encoder=dual_encoder, settings=settings, **more)
        with serving(app, settings) as found:
            yield found

    return make
