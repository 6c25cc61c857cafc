"""`isthmus serve MODEL`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Device, Dtype, Engine, MaxTiles, Threads

if TYPE_CHECKING:
    from isthmus.serving.settings import ServerSettings

LEVELS = ("debug", "info", "warning", "error")


def serve(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, or hf:REPO.")
    ] = "tiny",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="ISTHMUS_API_KEY", help="Key that clients must send.")
    ] = "",
    insecure_no_key: Annotated[
        bool, typer.Option(help="Let other machines ask without a key.")
    ] = False,
    dual_encoder: Annotated[
        str,
        typer.Option(
            help='For embeddings and labels: "tiny-clip", open_clip:..., hf:..., a folder.'
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "",
    template: Annotated[
        str, typer.Option(help="How conversations become prompts, such as chat or plain.")
    ] = "",
    max_batch: Annotated[int, typer.Option(min=1, help="Requests decoded together.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    memory: Annotated[
        int, typer.Option(min=1, help="Megabytes for cached prefixes and images.")
    ] = 1024,
    max_images: Annotated[int, typer.Option(min=1, help="Maximum images per request.")] = 32,
    allow_media_domain: Annotated[
        list[str] | None, typer.Option(help="A host that images may be fetched from over https.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name for this server on loopback.")
    ] = None,
    max_tiles: MaxTiles = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "torch",
    threads: Threads = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Copies of the model, each a process (Ray Serve).")
    ] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of replicas started under load.")
    ] = None,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "warning",
) -> None:
    """Serve a model through an OpenAI-compatible API.

    isthmus serve tiny --port 8000
    """
    from isthmus.cli.options import check_machine, image_options
    from isthmus.errors import InputError, MissingExtraError, suggestion

    check_machine(device, dtype, engine)
    if log_level not in LEVELS:
        raise InputError(f'unknown --log-level "{log_level}": {suggestion(log_level, LEVELS)}')
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("serving", "serve") from error
    from isthmus.serving.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_key=api_key or None,
        insecure_no_key=insecure_no_key,
        model_name=name or _name_of(model),
        dual_encoder_name=_other_name(_name_of(dual_encoder), name or _name_of(model)),
        template=template or None,
        max_batch=max_batch,
        max_queue=max_queue,
        max_images=max_images,
        memory=memory << 20,
        media_domains=tuple(allow_media_domain or ()),
        allowed_hosts=tuple(allow_host or ()),
        timeout=timeout,
    )
    from isthmus.serving.launch import serve as run

    run(
        model,
        settings,
        dual_encoder=dual_encoder or None,
        device=device,
        dtype=dtype,
        engine=engine,
        threads=threads,
        replicas=replicas,
        max_replicas=max_replicas,
        log_level=log_level,
        image_options=image_options(max_tiles),
        ready=lambda listened: typer.echo(_greeting(settings, listened)),
    )


def _name_of(model: str) -> str:
    """What clients call a model: its name, or the last part of its path."""
    return os.path.basename(model.rstrip("/")) or "dual-encoder"


def _other_name(name: str, taken: str) -> str:
    return f"{name}-dual-encoder" if name == taken else name


def _greeting(settings: ServerSettings, port: int) -> str:
    """One line: where the server is, and how to ask it something."""
    host = settings.host
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
    key = ' -H "Authorization: Bearer $ISTHMUS_API_KEY"' if settings.api_key else ""
    ask = '{"messages": [{"role": "user", "content": "Hello"}]}'
    return (
        f"serving at {address}/v1 - try: curl {address}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{ask}'"
    )
