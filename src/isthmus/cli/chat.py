"""`isthmus chat [MODEL]`."""

from __future__ import annotations

from typing import Annotated

import typer

from isthmus.cli.options import Device, Dtype, Threads


def chat(
    model: Annotated[
        str, typer.Argument(help="A shipped model's name, a folder, or hf:REPO.")
    ] = "tiny",
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Talk in the shell, without a page.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 7860,
    language: Annotated[str, typer.Option(help="en or ko; by default the browser's.")] = "",
    dual_encoder: Annotated[
        str,
        typer.Option(
            help='For labels: "tiny-clip", open_clip:..., hf:..., a folder; "" turns them off.'
        ),
    ] = "tiny-clip",
    password: Annotated[
        str,
        typer.Option(envvar="ISTHMUS_PASSWORD", help='Password of the user "isthmus".'),
    ] = "",
    insecure_no_password: Annotated[
        bool, typer.Option(help="Let other machines in without a password.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Talk to a model about images, on a page in the browser or in the shell.

    isthmus chat

    isthmus chat --terminal
    """
    from isthmus.cli.options import check_machine, use_machine
    from isthmus.serving.chat.launch import open_chat

    check_machine(device, dtype)
    use_machine(device, dtype, threads)
    open_chat(
        model,
        terminal=terminal,
        host=host,
        port=port,
        language=language,
        dual_encoder=dual_encoder or None,
        password=password,
        insecure_no_password=insecure_no_password,
        open_browser=open_,
        device=device,
        dtype=dtype,
        ready=lambda address: typer.echo(f"talk to it at {address}"),
    )
