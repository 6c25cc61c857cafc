"""Options that several verbs share, with one meaning.

`--device` and `--dtype` say where a model runs and in what data type; "auto" takes what the probe
of this machine found (`isthmus info` prints it). `--threads` is PyTorch's number on the CPU.
`--quiet` leaves progress out, `--json` prints the result as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.machine import DEVICES, DTYPES, ENGINES

Device = Annotated[
    str, typer.Option("--device", help=f"Where the model runs: {', '.join(DEVICES)}.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help=f"Data type of the weights: {', '.join(DTYPES)}.")
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help=f"Who runs the language model: {', '.join(ENGINES)}; llama is llama.cpp, for models "
        "whose images stand in the text.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads (default: all available)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Model = Annotated[
    str, typer.Option("--model", help="A shipped model's name, a folder, or hf:REPO.")
]
MaxTiles = Annotated[
    int | None,
    typer.Option(
        "--max-tiles",
        min=1,
        help="Maximum tiles per image, for models that cut images into tiles; 1 leaves images "
        "whole (default: as released).",
    ),
]
DualEncoder = Annotated[
    str,
    typer.Option("--model", help='"tiny-clip", open_clip:ARCH/PRETRAINED, hf:REPO, or a folder.'),
]


def check_machine(device: str = "auto", dtype: str = "auto", engine: str = "torch") -> None:
    """Says before anything is loaded that a name is of no device, data type or engine.

    Raises:
        ConfigError: If one is unknown.
        MissingExtraError: If an engine is not installed.
    """
    from isthmus import machine

    machine.check(device, dtype)
    machine.check_engine(engine)


def use_machine(device: str, dtype: str = "auto", threads: int | None = None) -> None:
    """Sets the threads, and says before a model is loaded that a device is not there.

    Raises:
        ConfigError: If a name is unknown, or this machine has no such device.
    """
    from isthmus import machine

    machine.check(device, dtype)
    machine.set_threads(threads)
    machine.device_for(device)


def for_few_images(model: Any) -> None:
    """Lets a model that will see a few images not trace its encoders, which takes a second."""
    from isthmus.model.backbones.vision import VisionEncoder

    for encoder in model.modules():
        if isinstance(encoder, VisionEncoder):
            encoder.traces = False


def image_options(max_tiles: int | None) -> dict[str, int]:
    """Options of how images are opened, those that are given."""
    return {} if max_tiles is None else {"max_tiles": max_tiles}


def check_text(text: str, what: str) -> None:
    """Refuses a text that came as bytes of another encoding.

    Args:
        text: An argument of the command line.
        what: What it is, for the message: "the question".

    Raises:
        InputError: If it is no Unicode.
    """
    from isthmus.errors import InputError

    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "backslashreplace").decode()
        raise InputError(
            f'{what} "{shown}" is not valid UTF-8 at character {error.start + 1}: '
            "expected text in UTF-8"
        ) from None


def open_source(source: str, allow_url: bool) -> Any:
    """An image from a path, stdin or, if allowed, an address; or a file of another kind.

    Args:
        source: A path, "-" for stdin, or an address.
        allow_url: Whether it may be an address.

    Raises:
        InputError: If it is an address and may not be.
        MediaError: If it cannot be read.
    """
    from isthmus.errors import InputError
    from isthmus.media.fetch import Fetcher, is_url
    from isthmus.media.image import open_image
    from isthmus.media.kinds import kinds, reference

    if is_url(source):
        if not allow_url:
            raise InputError(
                f"{source} is an address: pass --allow-url to fetch it, or a file on this machine"
            )
        return open_image(Fetcher(None, plain=True).fetch(source))
    if source != "-" and (file := reference(Path(source))).kind != "image":
        kinds()[file.kind].open(file.read())
        return file
    return open_image(sys.stdin.buffer if source == "-" else source)
