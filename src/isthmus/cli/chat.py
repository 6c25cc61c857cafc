"""`isthmus chat [MODEL]`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from isthmus.serving.completions import Service

MOST_FILE = "20mb"


def chat(
    model: Annotated[
        str, typer.Argument(help='A shipped model\'s name, a folder, or "hf:REPO" for text alone.')
    ] = "tiny",
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Talk here in the shell, without a page.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 7860,
    language: Annotated[str, typer.Option(help="en or ko; by default the browser's.")] = "",
    dual_encoder: Annotated[
        str,
        typer.Option(help='For labels: "tiny-clip", open_clip:..., hf:..., a folder; "" for none.'),
    ] = "tiny-clip",
    password: Annotated[
        str,
        typer.Option(envvar="ISTHMUS_PASSWORD", help='Asked for, of the user "isthmus".'),
    ] = "",
    insecure_no_password: Annotated[
        bool, typer.Option(help="Let other machines in without a password.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
) -> None:
    """Talk to a model about pictures, on a page in the browser or in the shell.

    isthmus chat

    isthmus chat --terminal
    """
    from isthmus.chat.words import LANGUAGES
    from isthmus.errors import InputError, MissingExtraError, suggestion

    if language and language not in LANGUAGES:
        raise InputError(f'unknown --language "{language}": {suggestion(language, LANGUAGES)}')
    try:
        import pydantic  # noqa: F401

        if not terminal:
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("talking", "ui") from error
    from isthmus.serving.settings import ServerSettings

    settings = ServerSettings(host=host, port=port, insecure_no_key=True)
    if not (settings.is_loopback or terminal or password or insecure_no_password):
        raise InputError(
            f"{host} can be reached by other machines: set a password (ISTHMUS_PASSWORD), listen "
            "on 127.0.0.1, or say --insecure-no-password"
        )
    service = _service(model, device, settings)
    if terminal:
        from isthmus.chat.terminal import Terminal

        if sys.stdin.isatty():
            print("ask something; /picture PATH shows a picture, /help tells more", file=sys.stderr)
        try:
            Terminal(service, sys.stdin, sys.stdout).run()
        finally:
            service.engine.close(drain=False)
        return
    from isthmus.chat.labels import sorter
    from isthmus.chat.page import STYLE, build_page, samples, theme

    classify = None
    if dual_encoder:
        from isthmus.align.saved import load_clip

        classify = sorter(load_clip(dual_encoder).to(device))
    page = build_page(
        service,
        classify,
        model_name=os.path.basename(model.rstrip("/")),
        language=language or None,
    )
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            auth=("isthmus", password) if password else None,
            share=False,
            inbrowser=open_,
            quiet=True,
            footer_links=[],
            max_file_size=MOST_FILE,
            allowed_paths=[str(path) for path in samples()],  # these pictures and nothing else
            theme=theme(),
            css=STYLE,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
        )
        typer.echo(f"talk to it at {address}")
        page.block_thread()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error}): choose another with --port, or 0"
        ) from error
    finally:
        page.close(verbose=False)
        service.engine.close(drain=False)


def _service(model: str, device: str, settings: Any) -> Service:
    from isthmus import checkpoint
    from isthmus.serving.completions import make_service

    return make_service(checkpoint.load_vlm(model, device=device), settings)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
