"""Every connector and fusion for two steps, sharded if there are several processes: one rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import isthmus as im
from isthmus.config.registry import CONNECTORS
from isthmus.training.smoke import WIDTH

FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, gate=0.5, visual_width=WIDTH),
}
ADAPTED: dict[str, Any] = {
    "adapter": im.Inline(adapter=im.Adapter(rank=2)),
    "both": im.CrossAttention(every=2, heads=2, gate=0.5, adapter=im.Adapter(rank=2)),
}


def connector(name: str) -> Any:
    """A connector's configuration at toy size."""
    return CONNECTORS.find(name)().toy()


def main(images: Path, out: Path) -> None:
    """Writes every design's losses, and its trained parameters."""
    torch.set_num_threads(1)
    records = [im.Record.of(p, "What is it?", p.stem) for p in sorted(images.glob("*.png"))]
    found: dict[str, list[float]] = {}
    config = im.TrainConfig(
        steps=2,
        batch_size=4,
        warmup=1,
        lr=1e-3,
        precision="fp32",
        sharding="fsdp",
        workers=0,
        feature_cache=False,
    )
    designs = [(name, fusion) for name in CONNECTORS.built_in() for fusion in FUSIONS]
    for name, fusion in [*designs, *(("linear", adapted) for adapted in ADAPTED)]:
        torch.manual_seed(0)
        chosen = (FUSIONS | ADAPTED)[fusion]
        options = connector(name)
        regions = getattr(options, "reads_regions", False)
        vision = im.VisionConfig(name="tiny-cnn" if regions else "tiny-vit", regions=regions)
        model = im.compose(vision, "tiny-lm", options, chosen)
        losses = found[f"{name} {fusion}"] = []
        im.train(
            model,
            records,
            config,
            out / f"{name} {fusion}",
            quiet=True,
            on_step=lambda _, loss, losses=losses: losses.append(loss),  # type: ignore[misc]
        )
    (out / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    if dist.is_initialized():
        dist.destroy_process_group()
