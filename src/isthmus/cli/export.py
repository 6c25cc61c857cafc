"""`isthmus export MODEL --to transformers|gguf --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import Device, Json, Threads


def export(
    model: Annotated[
        str, typer.Argument(help="A folder from `isthmus train`, or a released model.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    to: Annotated[str, typer.Option(help="transformers, or gguf for llama.cpp.")] = "transformers",
    lora: Annotated[
        str, typer.Option(help='"merge" LoRA into the weights, or write it for "peft".')
    ] = "merge",
    json_: Json = False,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="Data type: auto, float32, bfloat16 or float16; for GGUF f16, f32 or q8_0."
        ),
    ] = "auto",
    threads: Threads = None,
) -> None:
    """Export a model to a folder that Transformers or llama.cpp loads with its own classes.

    isthmus export runs/mine --to transformers --out mine-llava

    isthmus export runs/mine --to gguf --dtype q8_0 --out mine-gguf
    """
    from isthmus.cli.options import check_text, use_machine
    from isthmus.cli.output import print_json, printable

    check_text(str(out), "--out")
    use_machine(device, "auto" if to == "gguf" else dtype, threads)
    from isthmus.exporting.run import export as run

    options: dict[str, Any] = {"to": to, "lora": lora}
    found = run(model, out, **options, device=device, dtype=dtype)
    if json_:
        print_json(found.as_dict())
        return
    print(printable(f"written: {found.folder} ({found.architecture}, {found.bytes / 1e9:.2f} GB)"))
    rounded = f", in weights rounded to {found.rounded}" if found.rounded else ""
    print(f"checked: logits of three prompts differ by {found.difference:.2g} at most{rounded}")
    if found.pixels:
        print(f"pixels differ by {found.pixels:.2g} at most: another resampler of images")
    for note in found.notes:
        print(f"note: {note}")
