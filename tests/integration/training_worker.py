"""A small run, started by test_processes.py in processes of its own: one rank of several."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

import isthmus as im
from isthmus.data.records import Record
from isthmus.media.file_ref import FileRef
from isthmus.training.feed import DataSet
from isthmus.training.loop import train


def records(folder: Path) -> list[Record]:
    """Images, a document, a clip-less chat and text without an image."""
    made = [
        Record.of(FileRef(path), "What is it?", path.stem) for path in sorted(folder.glob("*.png"))
    ]
    first, second = made[0].images[0], made[1].images[0]
    return [
        *made,
        Record(text="a <image>b <image>cd", images_in_text=(first, second)),
        Record(text="no image here"),
        Record.of(None, "1 + 1?", "2"),
    ]


def main() -> None:
    images, out, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    kill_at = options.pop("kill_at", None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = im.compose(
        "tiny-vit",
        im.LanguageConfig(name="tiny-lm", lora_rank=options.pop("lora", 0)),
        im.Resampler(latents=4, depth=1, heads=2),
        im.CrossAttention(every=2, heads=2, gate=0.5),
    )
    found = records(images)

    def on_step(step: int, loss: float) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    base = {"steps": 6, "batch_size": 8, "warmup": 2, "save_every": 2, "log_every": 1, "lr": 3e-3}
    base |= {"precision": "fp32"}  # sums in bf16 depend on how a batch is divided
    config = im.TrainConfig(**{**base, "evaluate_every": 3, "sample_answers": 1, **options})
    held = [DataSet(found[:3], name="aside")]
    train(model, [DataSet(found)], config, out, evaluation=held, quiet=True, on_step=on_step)


if __name__ == "__main__":
    main()
