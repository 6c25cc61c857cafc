"""`open_chat`: a page in the browser, or a shell, on which one talks to a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import InputError, MissingExtraError, suggestion
from isthmus.model.checkpoint import load_vlm
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.serving.chat.words import LANGUAGES
from isthmus.serving.settings import ServerSettings

MOST_FILE = "20mb"


def _checked(
    *,
    terminal: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    language: str = "",
    password: str = "",
    insecure_no_password: bool = False,
) -> ServerSettings:
    """The settings of a chat; what is wrong with them is said before a model is loaded.

    Raises:
        InputError: If the language is unknown, or strangers could talk without a password.
        MissingExtraError: If the page's packages are not installed.
    """
    if language and language not in LANGUAGES:
        raise InputError(f'unknown --language "{language}": {suggestion(language, LANGUAGES)}')
    try:
        import pydantic  # noqa: F401

        if not terminal:
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("talking", "ui") from error
    settings = ServerSettings(host=host, port=port, insecure_no_key=True)
    if not (settings.is_loopback or terminal or password or insecure_no_password):
        raise InputError(
            f"{host} can be reached by other machines: set a password (ISTHMUS_PASSWORD), listen "
            "on 127.0.0.1, or say --insecure-no-password"
        )
    return settings


def open_chat(
    model: str | Path | VisionLanguageModel = "tiny",
    *,
    terminal: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    language: str = "",
    dual_encoder: str | Path | DualEncoder | None = "tiny-clip",
    password: str = "",
    insecure_no_password: bool = False,
    open_browser: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    ready: Callable[[str], object] | None = None,
) -> None:
    """Lets somebody talk to a model about images, until Ctrl-C or the end of their lines.

    Args:
        model: A shipped model's name, a folder, "hf:REPO" for text alone, or a model.
        terminal: Talk in the shell, on stdin and stdout, and not on a page.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        language: "en" or "ko"; empty asks the browser.
        dual_encoder: For labels: a name, a folder, a dual encoder, or None for no such part.
        password: Asked for, of the user "isthmus"; empty asks for none.
        insecure_no_password: Let other machines in without a password.
        open_browser: Open a browser.
        device: Where models that are named run.
        dtype: The data type of the named model's weights.
        ready: Is told the page's address once it is there.

    Raises:
        InputError: If the language is unknown, the address cannot be listened on, or strangers
            could talk without a password.
        MissingExtraError: If the page's packages are not installed.

    Example:
        >>> open_chat("tiny", port=0)  # doctest: +SKIP
    """
    settings = _checked(
        terminal=terminal,
        host=host,
        port=port,
        language=language,
        password=password,
        insecure_no_password=insecure_no_password,
    )
    from isthmus.serving.completions import make_service

    refuse_whole(model, "chat")
    loaded = model
    if not isinstance(loaded, VisionLanguageModel):
        loaded = load_vlm(loaded, device=device, dtype=dtype)
    service = make_service(loaded, settings)
    try:
        if terminal:
            _talk_in_terminal(service)
            return
        from isthmus.serving.chat.labels import sorter
        from isthmus.serving.chat.page import build_page

        encoder = load_clip(dual_encoder, device=device) if dual_encoder else None
        page = build_page(
            service,
            None if encoder is None else sorter(encoder),
            model_name=os.path.basename(str(model).rstrip("/"))
            if isinstance(model, (str, Path))
            else "model",
            language=language or None,
        )
        _show(page, host, port, password, open_browser, ready)
    finally:
        service.engine.close(drain=False)


def _talk_in_terminal(service: Any) -> None:
    from isthmus.serving.chat.terminal import Terminal

    if sys.stdin.isatty():
        print("ask something; /image PATH shows an image, /help tells more", file=sys.stderr)
    Terminal(service, sys.stdin, sys.stdout).run()


def _show(
    page: Any,
    host: str,
    port: int,
    password: str,
    open_browser: bool,
    ready: Callable[[str], object] | None,
) -> None:
    """Shows the page until Ctrl-C."""
    from isthmus.serving.chat.page import STYLE, samples, theme

    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            auth=("isthmus", password) if password else None,
            share=False,
            inbrowser=open_browser,
            quiet=True,
            footer_links=[],
            max_file_size=MOST_FILE,
            allowed_paths=[str(path) for path in samples()],  # these images and nothing else
            theme=theme(),
            css=STYLE,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
        )
        if ready is not None:
            ready(str(address))
        page.block_thread()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error}): choose another with --port, or 0"
        ) from error
    finally:
        page.close(verbose=False)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
