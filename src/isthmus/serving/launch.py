"""`serve`: from a model's name to a server that answers until it is told to end."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import ConfigError, MissingExtraError
from isthmus.machine import device_for, set_threads
from isthmus.model.checkpoint import load_vlm
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.serving.settings import ServerSettings


def serve(
    model: str | Path | VisionLanguageModel = "tiny",
    settings: ServerSettings | None = None,
    *,
    dual_encoder: str | Path | DualEncoder | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    threads: int | None = None,
    replicas: int = 1,
    max_replicas: int | None = None,
    log_level: str = "warning",
    image_options: Mapping[str, Any] | None = None,
    engine: str = "torch",
    ready: Callable[[int], object] | None = None,
) -> None:
    """Serves a model to every client of OpenAI's API, until SIGTERM or Ctrl-C.

    Args:
        model: A shipped model's name, a folder, "hf:REPO" for text alone, or a model.
        settings: Where it listens, who may ask, how much; None is loopback, port 8000.
        dual_encoder: For embeddings and labels: a name, a folder or a dual encoder.
        device: Where models that are named run.
        dtype: The data type of the named model's weights.
        threads: CPU threads of each process; None is all that may be used.
        replicas: Copies of the model, each a process (Ray Serve).
        max_replicas: More are started under load, up to so many.
        log_level: "debug", "info", "warning" or "error".
        image_options: Options of how images are opened, as in `load`.
        engine: Who runs the language model of a model that is named, as in `load`.
        ready: Is told the port once it is listened on.

    Raises:
        InputError: If the address cannot be listened on.
        ConfigError: If settings, device or template are impossible, or `replicas` came with a
            model and not its name.
        CheckpointError: If a model cannot be loaded.
        MissingExtraError: If the server's packages are not installed.

    Example:
        >>> serve("tiny", ServerSettings(port=8000))  # doctest: +SKIP
    """
    try:
        from isthmus.serving.run import listen, server_of
    except ImportError as error:
        raise MissingExtraError("serving", "serve") from error

    chosen = settings or ServerSettings()
    place = device_for(device)
    build = functools.partial(
        application,
        _placed(model),
        _placed(dual_encoder),
        chosen,
        str(device),
        dtype,
        threads,
        image_options,
        engine,
    )
    if replicas > 1 or max_replicas is not None:
        gpus = 1 if place.type == "cuda" else 0
        _serve_replicas(build, chosen, replicas, max_replicas, gpus, ready)
        return
    with listen(chosen) as listening:
        server = server_of(build(), chosen, log_level)
        if ready is not None:
            ready(listening.getsockname()[1])
        server.run(sockets=[listening])


def application(
    model: Any,
    dual_encoder: Any,
    settings: ServerSettings,
    device: str = "auto",
    dtype: str | torch.dtype | None = "auto",
    threads: int | None = None,
    image_options: Mapping[str, Any] | None = None,
    engine: str = "torch",
) -> Any:
    """Loads what is named, and makes the ASGI application that answers; `serve` runs it."""
    from isthmus.serving.app import create_app

    set_threads(threads)
    refuse_whole(model, "serving")
    if image_options and isinstance(model, VisionLanguageModel):
        raise ConfigError("got a model and image_options: pass them to load, or its name here")
    loaded = model
    if not isinstance(model, VisionLanguageModel):
        options: dict[str, Any] = {"image_options": image_options, "engine": engine}
        loaded = load_vlm(model, device=device, dtype=dtype, **options)
    second = None if not dual_encoder else load_clip(dual_encoder, device=device)
    return create_app(loaded, dual_encoder=second, settings=settings)


def _placed(model: Any) -> Any:
    """A folder's whole path, since replicas' processes stand elsewhere; anything else as it is."""
    if isinstance(model, (str, Path)) and str(model) and os.path.exists(model):
        return os.path.abspath(model)
    return model


def _serve_replicas(
    build: Callable[[], Any],
    settings: ServerSettings,
    replicas: int,
    max_replicas: int | None,
    gpus: int,
    ready: Callable[[int], object] | None,
) -> None:
    """Serves with Ray until somebody says stop."""
    from isthmus.serving.cluster import serve_replicas, stop_replicas

    told = threading.Event()
    serve_replicas(build, settings, replicas=replicas, max_replicas=max_replicas, gpus=gpus)
    try:
        for name in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
            signal.signal(name, lambda *_: told.set())
        if ready is not None:
            ready(settings.port)
        told.wait()
    finally:
        stop_replicas()
