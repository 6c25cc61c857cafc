"""A training step beside OpenFlamingo's: samples a second, from features to updated weights.

    python benchmarks/train_step.py [--quick] [--threads 2] [--batch 8]

Both train a resampler (6 layers, 64 latents of 1024) and gated blocks before every 4th layer of the
same frozen SmolLM2-135M, with copied weights, gates open, on the same tokens and labels. Features
of the images are given, so no encoder is timed. A step is labels, forward, loss, backward,
clipping, AdamW and clearing the gradients. The ways take turns. Asserted before anything is timed:
equal numbers of trained parameters, and equal losses to 1e-4.

Two kinds of batch, as OpenFlamingo 2.0.1 trains on (`open_flamingo/train/data.py`):

    documents   256 tokens with 3 images (MMC4). Theirs fills up to 6 images with zeros
                (`preprocess_interleaved`, `--mmc4_max_num_images` is 6), and resamples all 6.
    pairs       1 image and 8 to 32 tokens (LAION, captions cut at 32), both padded to the longest
                of the batch (`preprocess_laion_text`).

Their step is that of `train_one_epoch` in `open_flamingo/train/train_utils.py`: labels masked row
by row in Python, one backward pass for each data set, the norm clipped at each micro step over all
parameters, AdamW with weight decay on the gated blocks alone, gradients set to None. It runs with
`--freeze_lm_embeddings`, as their 4B models were trained: without, all embeddings would be trained
(and all but two rows of their gradient thrown away), and the strips would not be equal. There is
one process, so DDP is left out.

    ratio train_step             ours over theirs, documents
    ratio train_step_pairs       the same, pairs
    ratio train_step_mixture     one batch of each in a step, as theirs does it
    ratio train_step_unpadded    documents, without their filling up of images

All of it under bf16 autocast, as OpenFlamingo-9B was trained (`--precision amp_bf16`; Awadalla et
al. 2023, section 3.2), and on the CPU once more in fp32 (`..._fp32`). In ours the frozen language
model is in half precision and, on a CPU, attends eagerly, as `freeze_in_half` of our trainer has
it; theirs stays as its code leaves it.

The floor is the step's floating-point operations (PyTorch's counter, on ours) over the rate of a
large matrix product here, in the same precision. With a GPU everything is done a second time
there (`..._gpu`), and the share of the measured peak is the model FLOPs utilisation. Without
open-flamingo 2.0.1 (`pip install --no-deps open-flamingo==2.0.1 einops einops-exts
open_clip_torch`) only our samples a second are printed. `--phases` tells what bounds pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import openflamingo
import torch
from openflamingo_step import (
    CONFIG,
    EVERY,
    IGNORED,
    PAD,
    WIDTH,
    Autocast,
    Samples,
    Step,
    their_labels,
    their_loss,
    their_model,
    their_step,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import isthmus as im
from isthmus.model.backbones.feature_shape import FeatureShape
from isthmus.model.fusion.cross_attention import GatedCrossAttentionBlock
from isthmus.training.optim import optimizer_for
from isthmus.training.vlm import freeze_in_half

PATCHES, GATE = 256, 0.5
LENGTH, QUICK_LENGTH, IMAGES = 256, 64, 3
SHORTEST_PAIR, LONGEST_PAIR = 8, 32


def words(count: int) -> Tensor:
    """Random tokens that are neither padding nor special."""
    return torch.randint(100, 40_000, (count,))


def documents(rows: int, length: int, image: int, end: int, eos: int) -> Samples:
    """Rows of tokens: <image> words <|endofchunk|>, IMAGES times, and the end of text."""
    ids = torch.empty(rows, length, dtype=torch.long)
    for row in ids:
        row[:] = words(length)
        starts = [i * (length - 1) // IMAGES for i in range(IMAGES)]
        row[starts] = image
        row[[s - 1 for s in [*starts[1:], length - 1]]] = end
        row[-1] = eos
    features = torch.randn(rows, IMAGES, PATCHES, WIDTH)
    return Samples(ids, torch.ones_like(ids), features, documents=True)


def pairs(rows: int, image: int, end: int, eos: int) -> Samples:
    """Rows of <image> words <|endofchunk|> end of text, padded to the longest."""
    lengths = torch.linspace(SHORTEST_PAIR, LONGEST_PAIR, rows).long().tolist()
    ids = torch.full((rows, max(lengths)), PAD)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = words(length)
        row[0], row[length - 2], row[length - 1] = image, end, eos
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return Samples(ids, mask, torch.randn(rows, 1, PATCHES, WIDTH), documents=False)


# --- Ours ---------------------------------------------------------------------------------------


def our_model(language: Any = "asset:smollm2-135m-instruct") -> im.VisionLanguageModel:
    """A language model behind our resampler and gated blocks, gates open, special tokens frozen."""
    encoder = im.load_vision("tiny-vit")
    encoder.shape = FeatureShape(WIDTH, PATCHES, None)
    fusion = im.CrossAttention(every=EVERY, offset=1, visual_width=WIDTH)
    model = im.compose(encoder, language, im.Resampler(), fusion)
    for block in model.fusion.blocks.values():
        nn.init.constant_(cast(GatedCrossAttentionBlock, block).attention_gate, GATE)
        nn.init.constant_(cast(GatedCrossAttentionBlock, block).ffw_gate, GATE)
    cast(nn.Module, model.special_tokens).requires_grad_(False)
    return model


def our_labels(samples: Samples, image: int, end: int) -> Tensor:
    """(B, L) labels: in documents the words of each chunk and its end, in pairs all but padding."""
    ids = samples.ids
    costs = (samples.mask != 0) & (ids != image)
    if samples.documents:
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        begun = torch.where(ids == image, place, -1).cummax(dim=1).values
        ended = torch.where(ids == end, place, -1).cummax(dim=1).values.roll(1, dims=1)
        ended[:, 0] = -1
        costs &= begun > ended
    return ids.masked_fill(~costs, IGNORED)


def our_loss(model: im.VisionLanguageModel, samples: Samples) -> Tensor:
    """The loss of a batch."""
    tokens = model.special_tokens
    labels = our_labels(samples, tokens.image_id, tokens.end_id)
    batch = im.Batch(
        input_ids=samples.ids, attention_mask=samples.mask, features=samples.features.flatten(0, 1)
    )
    loss: Tensor | None = model(replace(batch, labels=labels)).loss
    assert loss is not None
    return loss


def our_step(
    model: im.VisionLanguageModel, optimizer: torch.optim.Optimizer, autocast: Autocast
) -> Step:
    """Our training step over the batches of one or two data sets."""
    trained = list(model.trained_parameters().values())

    def step(batches: list[Samples]) -> None:
        for samples in batches:
            with autocast():
                loss = our_loss(model, samples)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# --- The comparison -----------------------------------------------------------------------------


def assert_equal_work(
    model: im.VisionLanguageModel, other: nn.Module, kinds: list[Samples]
) -> None:
    """Equal strips, labels and losses, or an AssertionError."""
    mine = sum(p.numel() for p in model.trained_parameters().values())
    theirs = sum(p.numel() for p in other.parameters() if p.requires_grad)
    assert mine == theirs, f"{mine} and {theirs} trained parameters"
    print(f"{mine / 1e6:.1f} M trained parameters in both")
    tokens = model.special_tokens
    for samples in kinds:
        labels = our_labels(samples, tokens.image_id, tokens.end_id)
        expected = their_labels(samples, tokens.image_id, tokens.end_id)
        assert torch.equal(labels, expected), "the labels differ"
        with torch.no_grad():
            losses = [
                float(our_loss(model, samples)),
                *(float(their_loss(other, samples, fill=fill)) for fill in (True, False)),
            ]
        spread = max(losses) - min(losses)
        assert spread <= 1e-4, f"the losses differ: {losses}"
        print(f"losses {', '.join(f'{loss:.6f}' for loss in losses)}: equal to {spread:.0e}")


def seconds(step: Step, batches: list[Samples], device: str) -> float:
    """Wall time of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step(batches)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def take_turns(
    ways: dict[str, Step], batches: list[Samples], device: str, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each way's steps, after one that makes room and the optimisers' moments."""
    for way in ways.values():
        way(batches)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(way, batches, device))
    return times


def peak(device: str, dtype: torch.dtype, *, brief: bool) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device == "cuda" else 1024 if brief else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(_: list[Samples]) -> None:
        torch.mm(a, b, out=out)

    return 2 * size**3 / min(seconds(multiply, [], device) for _ in range(8))


def compare(device: str, dtype: torch.dtype, rows: int, repeats: int, *, brief: bool) -> list[str]:
    """Prints a table of one device and precision; `brief` leaves out what is no headline.

    Returns:
        The lines with the ratios.
    """
    torch.manual_seed(0)
    model = our_model()
    other = their_model(model) if openflamingo.is_installed() else None
    tokens = model.special_tokens
    special = (tokens.image_id, tokens.end_id, model.language.end_ids()[0])
    kinds = [pairs(rows, *special), documents(rows, QUICK_LENGTH if brief else LENGTH, *special)]
    if other is not None:
        assert_equal_work(model, other, kinds)
    half = dtype != torch.float32
    model.to(device).train()
    if half:
        freeze_in_half(model, replace(CONFIG, precision="bf16"))
    if other is not None:
        other.to(device)
    kinds = [samples.to(device) for samples in kinds]

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, dtype) if half else nullcontext()

    optimizer = optimizer_for(model, model.trained_parameters(), CONFIG)
    ours = our_step(model, optimizer, autocast)
    ways, unpadded = {"ours": ours}, {"ours": ours}
    if other is not None:
        ways["openflamingo"] = their_step(other, autocast, fill=True)
        unpadded["unpadded"] = their_step(other, autocast, fill=False)
    scenarios = [("train_step_mixture", kinds, ways), ("train_step_unpadded", kinds[1:], unpadded)]
    headlines = [("train_step", kinds[1:], ways), ("train_step_pairs", kinds[:1], ways)]
    fastest = peak(device, dtype, brief=brief)
    lines: list[str] = []
    suffix = "_gpu" if device == "cuda" else "" if half else "_fp32"
    print(f"{device}, {dtype}")
    print(f"{'step':<22}{'who':<14}{'samples/s':>10}{'min':>8}{'max':>8}")
    for name, batches, chosen in headlines if brief else scenarios + headlines:
        times = take_turns(chosen, batches, device, repeats)
        count = sum(len(b.ids) for b in batches)
        for who, values in times.items():
            median, low, high = (count / f(values) for f in (statistics.median, max, min))
            print(f"{name:<22}{who:<14}{median:>10.2f}{low:>8.2f}{high:>8.2f}", flush=True)
        with FlopCounterMode(display=False) as counter:
            ours(batches)
        operations, own = counter.get_total_flops(), statistics.median(times["ours"])
        print(
            f"  floor {operations / fastest:.2f} s: {operations / 1e9:.0f} GFLOP at "
            f"{fastest / 1e9:.0f} GFLOP/s; ours takes {own:.2f} s, "
            f"{100 * operations / fastest / own:.0f}% of the peak"
        )
        if other is None:
            continue
        mine, theirs = times.values()
        each = [b / a for a, b in zip(mine, theirs, strict=True)]
        key = name + suffix
        print(f"# {key}: {min(each):.2f} to {max(each):.2f} over {repeats} turns", flush=True)
        lines.append(f"ratio {key} {statistics.median(each):.2f}")
    return lines


class ProductTime(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """CPU seconds of matrix products."""

    seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator."""
        started = time.process_time()
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.seconds += time.process_time() - started
        return found


def tell_phases(rows: int) -> None:
    """What bounds a step of pairs in fp32: CPU seconds, which other processes hardly change."""
    torch.manual_seed(0)
    model = our_model().train()
    tokens = model.special_tokens
    batch = pairs(rows, tokens.image_id, tokens.end_id, model.language.end_ids()[0])
    trained = list(model.trained_parameters().values())
    optimizer = optimizer_for(model, model.trained_parameters(), CONFIG)
    our_step(model, optimizer, nullcontext)([batch])  # makes room, and the optimiser's moments
    marks = [time.process_time()]
    with ProductTime() as products:  # type: ignore[no-untyped-call]
        loss = our_loss(model, batch)
        marks.append(time.process_time())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(time.process_time())
    torch.nn.utils.clip_grad_norm_(trained, CONFIG.clip)
    marks.append(time.process_time())
    optimizer.step()
    marks.append(time.process_time())
    spent = [b - a for a, b in pairwise(marks)]
    for name, own in zip(("forward", "backward", "clipping", "AdamW"), spent, strict=True):
        print(f"{name:<18}{1000 * own:>8.0f} ms")
    print(f"{'matrix products':<18}{1000 * products.seconds:>8.0f} ms of {1000 * sum(spent):.0f}")


def main() -> None:
    """The comparison on this machine's GPU, where there is one, and on its CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="1 row of 64 tokens a batch, 1 turn, fp32"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--phases", action="store_true", help="what bounds pairs, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.phases:
        return tell_phases(options.batch)
    rows, repeats = (1, 1) if options.quick else (options.batch, 7)
    lines = []
    if torch.cuda.is_available():
        lines += compare("cuda", torch.bfloat16, rows, repeats, brief=options.quick)
    # without instructions for it, bf16 takes minutes
    precisions = [torch.float32] if options.quick else [torch.float32, torch.bfloat16]
    for dtype in precisions:
        lines += compare("cpu", dtype, rows, repeats, brief=options.quick)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
