"""Small contrastive runs, started by test_contrastive_processes.py: one rank of several."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from isthmus.config.clip import ContrastiveConfig
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig
from isthmus.training.loop import train
from isthmus.training.pairs import PairSet

RUNS = {
    "locked": ({"loss": "softmax"}, {"views": 2}),
    "whole": ({"loss": "sigmoid", "lock_image": False, "lock_text": False}, {"chunk": 2}),
}


def main(images: Path, out: Path) -> None:
    """Both runs: a batch that two processes cannot share evenly, two records of one name."""
    torch.set_num_threads(1)
    paths = sorted(images.glob("*.png"))
    records = [Record.of(p, "", p.stem, names=(p.stem, f"dark {p.stem}")) for p in paths]
    records.append(Record.of(paths[0], "", paths[1].stem))
    data = [PairSet(records, "imagenet-7")]
    for name, (options, changes) in RUNS.items():
        torch.manual_seed(0)
        head = HeadConfig(hidden=16)
        model = DualEncoder.join("tiny-vit", "tiny-text", width=8, image_head=head, **options)
        base = {"steps": 5, "batch_size": 7, "warmup": 1, "log_every": 1, "save_every": 2}
        config = TrainConfig(
            **base,
            evaluate_every=5,
            lr=1e-3,
            precision="fp32",
            contrastive=ContrastiveConfig(**changes),
        )
        train(model, data, config, out / name, evaluation=data, quiet=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    if dist.is_initialized():
        dist.destroy_process_group()
