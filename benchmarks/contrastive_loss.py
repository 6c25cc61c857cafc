"""Memory and time of the contrastive losses at large batches, beside open_clip's.

    python benchmarks/contrastive_loss.py [--quick] [--threads 2] [--width 512] [--pairs 4096 ...]

Loss, forward and backward, of N pairs of vectors of length 1 in fp32, in one process on the CPU.

Memory is the highest resident memory of a process of its own during one forward and backward pass,
less what it held with the vectors before: gradients are counted. `MALLOC_MMAP_THRESHOLD_=65536`
makes glibc give memory back as soon as a tensor is gone. Time is the best of a few, both ways in
turn. open_clip holds several N x N matrices: it is run where they fit into the memory that is free,
and left out, which the table says, where they do not, or where it is not installed.

    ratio contrastive_loss_memory_growth  memory at the largest batch over that at the one before,
                                          a quarter of it: 4 is linear, 16 is quadratic; the larger
                                          of both losses
    ratio contrastive_loss_memory         open_clip's memory over ours, at the largest batch that
                                          both ran; the smaller of both losses
    ratio contrastive_loss_time           our time over open_clip's likewise; the larger
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.training.losses.contrastive import clip_loss, siglip_loss

MATRICES = 8
"""N x N matrices that open_clip's losses hold at their peak, rounded up."""
KINDS = ("clip", "siglip")


def inputs(pairs: int, width: int) -> list[Tensor]:
    """Images, texts, factor, bias."""
    made = torch.Generator().manual_seed(0)
    found = [F.normalize(torch.randn(pairs, width, generator=made), dim=-1) for _ in range(2)]
    return [t.requires_grad_() for t in (*found, torch.tensor(14.3), torch.tensor(-10.0))]


def way(kind: str, ours: bool) -> Callable[..., Tensor]:
    """A loss of images, texts, factor and bias."""
    if ours:
        return siglip_loss if kind == "siglip" else lambda i, t, s, b: clip_loss(i, t, s)
    from open_clip.loss import ClipLoss, SigLipLoss  # which the processes that time ours do without

    if kind == "siglip":
        return SigLipLoss()
    loss = ClipLoss()
    return lambda i, t, s, b: loss(i, t, s)


def resident(field: str) -> int:
    """Bytes of a field of this process' status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def free() -> int:
    """Bytes that programs may still take."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def one(kind: str, ours: bool, pairs: int, width: int) -> None:
    """Prints the peak of one pass, in bytes."""
    torch.set_num_threads(1)
    loss = way(kind, ours)
    # its libraries are loaded now
    loss(*inputs(64, width)).backward()  # type: ignore[no-untyped-call]
    given = inputs(pairs, width)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    loss(*given).backward()  # type: ignore[no-untyped-call]
    print(resident("VmHWM") - before)


def peak(kind: str, ours: bool, pairs: int, width: int) -> int:
    """As `one`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, str(int(ours)), str(pairs), str(width)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def times(kind: str, pairs: int, width: int, both: bool, repeats: int) -> dict[bool, float]:
    """Seconds of ours (True) and open_clip's (False)."""
    given = inputs(pairs, width)
    ways = {ours: way(kind, ours) for ours in ((True, False) if both else (True,))}
    best = dict.fromkeys(ways, float("inf"))
    values = {}
    for _ in range(repeats):
        for ours, loss in ways.items():
            started = time.perf_counter()
            value = loss(*given)
            value.backward()  # type: ignore[no-untyped-call]
            best[ours] = min(best[ours], time.perf_counter() - started)
            values[ours] = float(value.detach())
    if both:
        assert abs(values[True] - values[False]) < 1e-4 * max(1, abs(values[False])), values
    return best


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="512 and 2,048 pairs, one time each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, *numbers = options.one
        ours, pairs, width = map(int, numbers)
        one(kind, bool(ours), pairs, width)
        return
    torch.set_num_threads(options.threads)
    sizes = [512, 2048] if options.quick else sorted(options.pairs)
    memory: dict[tuple[str, int, bool], int] = {}
    seconds: dict[tuple[str, int, bool], float] = {}
    compared = 0
    try:
        import open_clip  # noqa: F401

        peer = True
    except ImportError as error:
        peer = False
        print(f"open_clip is not installed and left out ({error}): pip install open_clip_torch")
    print(
        f"{'loss':<8}{'pairs':>8}{'ours, MB':>11}{'open_clip, MB':>15}"
        f"{'ours, s':>10}{'open_clip, s':>14}"
    )
    for pairs in sizes:
        both = peer and MATRICES * 4 * pairs**2 < free()
        compared = pairs if both else compared
        for kind in KINDS:
            for ours in (True, False) if both else (True,):
                memory[kind, pairs, ours] = peak(kind, ours, pairs, options.width)
            repeats = 1 if options.quick or pairs > 30_000 else 3
            for ours, found in times(kind, pairs, options.width, both, repeats).items():
                seconds[kind, pairs, ours] = found
            cells = [f"{memory[kind, pairs, True] / 1e6:11.0f}"]
            cells += [f"{memory[kind, pairs, False] / 1e6:15.0f}" if both else f"{'left out':>15}"]
            cells += [f"{seconds[kind, pairs, True]:10.2f}"]
            cells += [f"{seconds[kind, pairs, False]:14.2f}" if both else f"{'left out':>14}"]
            print(f"{kind:<8}{pairs:>8}{''.join(cells)}", flush=True)
    if len(sizes) > 1:
        largest, before = sizes[-1], sizes[-2]
        growth = max(memory[k, largest, True] / memory[k, before, True] for k in KINDS)
        print(f"ratio contrastive_loss_memory_growth {growth:.2f}")
    if compared:
        less = min(memory[k, compared, False] / memory[k, compared, True] for k in KINDS)
        print(f"ratio contrastive_loss_memory {less:.1f}")
        slower = max(seconds[k, compared, True] / seconds[k, compared, False] for k in KINDS)
        print(f"ratio contrastive_loss_time {slower:.2f}")


if __name__ == "__main__":
    main()
