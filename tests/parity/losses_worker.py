"""open_clip's losses and ours on this process's pairs; started by test_open_clip_losses.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from isthmus.training.losses.contrastive import clip_loss, siglip_loss

PAIRS, WIDTH = 24, 16
NAMES = torch.arange(PAIRS) % 9


def pairs() -> tuple[Tensor, Tensor]:
    """All pairs, the same in every process."""
    made = torch.Generator().manual_seed(0)
    drawn = (torch.randn(PAIRS, WIDTH, generator=made) for _ in range(2))
    image, text = (F.normalize(d, dim=-1) for d in drawn)
    return image, text


def uneven(rank: int) -> list[Tensor]:
    """As below, with a third of the pairs on the first process."""
    own = slice(0, PAIRS // 3) if rank == 0 else slice(PAIRS // 3, PAIRS)
    inputs = [x[own].clone().requires_grad_() for x in pairs()]
    inputs += [torch.tensor(v, requires_grad=True) for v in (12.0, -3.0)]
    loss = clip_loss(*inputs[:3], names=NAMES[own], tile=5, group=dist.group.WORLD)
    grads = torch.autograd.grad(loss, inputs[:3])
    return [loss.detach(), *grads, torch.zeros(())]


def all_losses(rank: int, processes: int) -> dict[str, list[Tensor]]:
    """Loss, and gradients of images, texts, factor and bias, of each way."""
    group = dist.group.WORLD if processes > 1 else None
    size = PAIRS // processes
    own = slice(rank * size, (rank + 1) * size)
    place = {"rank": rank, "world_size": processes}
    clip = ClipLoss(local_loss=True, gather_with_grad=True, **place)
    whole = ClipLoss(local_loss=False, gather_with_grad=True, **place)
    ways = {
        "open_clip clip": lambda i, t, s, b: clip(i, t, s),
        "open_clip clip, global": lambda i, t, s, b: whole(i, t, s),
        "open_clip siglip": SigLipLoss(**place),
        "open_clip siglip, gather": SigLipLoss(dist_impl="gather", **place),
    }
    for tile in (5, None):
        options = {"tile": tile, "group": group}
        ways[f"clip, {tile}"] = lambda i, t, s, b, o=options: clip_loss(i, t, s, **o)
        ways[f"siglip, {tile}"] = lambda i, t, s, b, o=options: siglip_loss(i, t, s, b, **o)
    for same_name in ("neither", "positive"):
        named = {"names": NAMES[own], "same_name": same_name, "tile": 5, "group": group}
        ways[f"clip, {same_name}"] = lambda i, t, s, b, o=named: clip_loss(i, t, s, **o)
        ways[f"siglip, {same_name}"] = lambda i, t, s, b, o=named: siglip_loss(i, t, s, b, **o)
    found = {}
    for name, way in ways.items():
        inputs = [x[own].clone().requires_grad_() for x in pairs()]
        inputs += [torch.tensor(v, requires_grad=True) for v in (12.0, -3.0)]
        loss = way(*inputs)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        found[name] = [loss.detach(), *(torch.zeros(()) if g is None else g for g in grads)]
    return found


def main() -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    found = {**all_losses(rank, processes), "uneven": uneven(rank)}
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
