"""The parts of `gpu.py`: what each measures, and writes as soon as it is there."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

COUNTS = (1, 16, 64)
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""TFLOP/s of dense bf16 products by the card's name, from its maker's data sheets."""


def peak_of(name: str) -> float | None:
    """FLOP/s in bf16 of a card by its name; None of an unknown one.

    Example:
        >>> peak_of("NVIDIA H100 PCIe"), peak_of("NVIDIA L40")
        (756000000000000.0, None)
    """
    words = name.replace("-", " ").split()
    for known, tera in PEAKS.items():
        if set(known.split()) <= set(words):
            return tera * 1e12
    return None


class Told:
    """Writes figures to a file as they come, and prints them."""

    def __init__(self, out: Path, part: str) -> None:
        self.out, self.part = out, part

    def __call__(self, **figures: Any) -> None:
        """One JSON object, on a line of its own."""
        line = json.dumps({"part": self.part, **figures})
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def trying(self, what: dict[str, Any], measure: Callable[[], None]) -> None:
        """Measures; what goes wrong is told, and is no other measurement's."""
        try:
            measure()
        except (Exception, SystemExit) as error:
            self(**what, failed=f"{type(error).__name__}: {error}"[:800])


# --- recorded steps -------------------------------------------------------------------------------


def graphs(told: Told, options: argparse.Namespace) -> None:
    """Recorded steps beside eager ones: the same logits, then the time of each."""
    import gpu_models
    import torch

    from isthmus.generation.graph_lanes import GraphLanes
    from isthmus.generation.graphs import Graphs
    from isthmus.generation.lanes import Lanes

    records = options.device == "cuda"
    torch.set_grad_enabled(False)
    # in float64 rounding does not grow from step to step, and what is wrong stays wrong
    model = gpu_models.bare("toy", torch.float64, options.device)
    both = Graphs(model, 4, rooms=(32, 64, 128), records=records)
    if records:
        both.warm_up()
    eager, recorded = Lanes(model), GraphLanes(both)
    worst = 0.0
    for start in range(4):
        enter(model, [eager, recorded], 1, 7 * start + 3)
        for number in range(20):
            ids = [(number * 7 + row) % 256 for row in range(start + 1)]
            one, other = eager.step(ids), recorded.step(ids)
            worst = max(worst, float((one - other).abs().max()))
    told(
        model="toy",
        dtype="float64",
        largest_difference=worst,
        recorded=both.records,
        equal_to_1e_5=worst <= 1e-5,
    )
    if worst > 1e-5 or both.records != records:
        raise SystemExit("the recorded step is not the eager one, or could not be recorded")
    if records:
        for size in ["toy"] if options.quick else ["135M", "1.1B"]:
            time_graphs(told, options, size)


def time_graphs(told: Told, options: argparse.Namespace, size: str) -> None:
    """Milliseconds of a step in bfloat16, and whether a replay is what was recorded."""
    import gpu_models
    import torch

    from isthmus.generation.graph_lanes import GraphLanes
    from isthmus.generation.graphs import Graphs
    from isthmus.generation.lanes import Lanes

    model = gpu_models.bare(size, torch.bfloat16, options.device)
    started = time.perf_counter()
    both = Graphs(model, COUNTS[-1])
    both.warm_up()
    told(model=size, warm_up_s=time.perf_counter() - started, steps=len(both._steps))
    for rows in COUNTS:
        ways: dict[str, Any] = {"eager": Lanes(model), "recorded": GraphLanes(both)}
        enter(model, list(ways.values()), rows, 100)
        times: dict[str, float] = {}
        for name, lanes in ways.items():
            for count in (3, 50):  # the first ones warm up
                torch.cuda.synchronize()
                started = time.perf_counter()
                for _ in range(count):
                    lanes.step([97] * rows)
                torch.cuda.synchronize()
                times[name] = 1000 * (time.perf_counter() - started) / count
        told(model=size, rows=rows, **{f"{name}_ms": ms for name, ms in times.items()})
        print(f"ratio graphs_{size}_{rows} {times['eager'] / times['recorded']:.2f}", flush=True)
    step = next(iter(both._steps.values()))
    replayed = step().clone()
    with step.shown():
        told(model=size, replay_is_recorded_step=bool(torch.equal(replayed, step.compute())))


def enter(model: Any, holders: list[Any], count: int, length: int) -> None:
    """Prefills rows of a length, and has them join."""
    from isthmus.generation.rows import Encoded, Rows

    for row in range(count):
        ids = tuple((row + place) % 256 for place in range(length))
        for lanes in holders:
            rows = Rows(model, [Encoded(ids, ids, (), ())], {})
            rows.prefill()
            lanes.join(rows, [0])


# --- decoding -------------------------------------------------------------------------------------


def decode(told: Told, options: argparse.Namespace) -> None:
    """Tokens a second of so many rows."""
    import gpu_models
    import torch

    from isthmus.assets.registry import cached

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    sizes = ["toy"] if options.quick else ["135M", "1.1B", "7B"]
    rates: dict[tuple[str, int, str], float] = {}
    # what compiles takes longest, and may cost no other figure
    for static in (False, True) if options.device == "cuda" else (False,):
        for size in sizes:
            model = gpu_models.bare(size, dtype, options.device)
            decode_beside(told, options, size, model, rates, static=static)
            del model
    if not options.quick:
        names = ("efficientnet-lite2", "smollm2-135m-instruct")
        if all(cached(name) for name in names):
            told.trying({"model": "tiny"}, lambda: decode_tiny(told, options))
        else:
            told(model="tiny", left_out="its weights are not cached: isthmus assets fetch --all")


def decode_beside(
    told: Told,
    options: argparse.Namespace,
    size: str,
    model: Any,
    rates: dict[tuple[str, int, str], float],
    *,
    static: bool,
) -> None:
    """Ours and Transformers' on one language model; `static` measures its static cache alone."""
    import torch

    import isthmus as im

    language = model.language.model
    torch.set_grad_enabled(False)
    for rows in COUNTS[:2] if options.quick else COUNTS:
        texts = [f"Row {row:02}: tell me something that I do not know." for row in range(rows)]
        ids = torch.tensor([model.encode_text(t, 0) for t in texts], device=model.device)
        engine = im.Engine(model, batch_size=rows)

        def ours(n: int, engine: Any = engine, texts: list[str] = texts) -> None:
            made = engine.generate([im.Prompt(t) for t in texts], max_new_tokens=n)
            assert all(g.completions[0].new_tokens == n for g in made), "a text ended early"

        def theirs(n: int, ids: Any = ids, **more: Any) -> None:
            mask = torch.ones_like(ids)
            fixed = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
            language.generate(input_ids=ids, attention_mask=mask, **fixed, **more)

        ways: dict[str, Callable[[int], None]] = {"ours": ours, "transformers": theirs}
        if static:
            ways = {"transformers, static": partial(theirs, cache_implementation="static")}
        elif options.device == "cuda":
            eager = im.Engine(model, batch_size=rows)
            eager._core.graphs = None
            ways["ours, eager"] = partial(ours, engine=eager)
        for name, way in ways.items():
            what = {"model": size, "rows": rows, "who": name}
            told.trying(what, partial(tell_rate, told, options, way, what, rates))
        mine = rates.get((size, rows, "ours"))
        peer = rates.get((size, rows, list(ways)[-1 if static else 1]))
        if mine and peer:
            kind = "decode_static" if static else "decode"
            print(f"ratio {kind}_{size}_{rows} {mine / peer:.2f}", flush=True)


def tell_rate(
    told: Told,
    options: argparse.Namespace,
    way: Callable[[int], None],
    what: dict[str, Any],
    medians: dict[tuple[str, int, str], float],
) -> None:
    """Measures a way of decoding, prefill left out; its median goes to `medians`."""
    from decode import decoding_time

    tokens, turns = (8, 1) if options.quick else (64, 3)
    way(2)  # warms up
    rates = [what["rows"] * tokens / decoding_time(way, tokens) for _ in range(turns)]
    median = medians[what["model"], what["rows"], what["who"]] = statistics.median(rates)
    told(**what, tokens_per_s=median, low=min(rates), high=max(rates), **memory(options.device))


def decode_tiny(told: Told, options: argparse.Namespace) -> None:
    """The shipped default, an image in each row."""
    import isthmus as im

    model = im.load("tiny", device=options.device)
    image = im.open_image(Path(__file__).parent.parent / "examples" / "cat.jpg")
    for rows in COUNTS:
        engine = im.Engine(model, batch_size=rows)
        texts = [f"<image>Question {row}: What is in it? Answer:" for row in range(rows)]

        def way(n: int, engine: Any = engine, texts: list[str] = texts) -> None:
            engine.generate([im.Prompt(t, (image,)) for t in texts], max_new_tokens=n)

        # its answers end by themselves: so many a second, of at most 16 tokens
        way(2)
        started = time.perf_counter()
        way(16)
        told(model="tiny", rows=rows, answers_per_s=rows / (time.perf_counter() - started))


def memory(device: str) -> dict[str, float]:
    """The most of the card's memory that this part has taken so far."""
    import torch

    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if device == "cuda" else {}


# --- training -------------------------------------------------------------------------------------


def train(told: Told, options: argparse.Namespace) -> None:
    """A training step, and what share of the card's peak it is."""
    import torch

    sizes = ["toy"] if options.quick else ["135M", "1.1B"]
    name = torch.cuda.get_device_name(0) if options.device == "cuda" else platform.processor()
    for size in sizes:
        for rows in [1] if options.quick else [8, 32]:
            told.trying(
                {"model": size, "rows": rows},
                partial(train_one, told, options, size, rows, peak_of(name)),
            )


def train_one(
    told: Told, options: argparse.Namespace, size: str, rows: int, known: float | None
) -> None:
    """One size and batch."""
    import contextlib
    from dataclasses import replace

    import gpu_models
    import torch
    import train_step
    from openflamingo_step import CONFIG
    from torch.utils.flop_counter import FlopCounterMode

    from isthmus.model.backbones.language import load_language
    from isthmus.model.backbones.tiny import byte_tokenizer
    from isthmus.training.optim import optimizer_for
    from isthmus.training.vlm import freeze_in_half

    device = options.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    language = load_language(
        gpu_models.language_model(size, torch.float32, device, rows=gpu_models.ROWS),
        tokenizer=byte_tokenizer(),
    )
    model = train_step.our_model(language).to(device).train()
    if dtype == torch.bfloat16:
        freeze_in_half(model, replace(CONFIG, precision="bf16"))
    tokens = model.special_tokens
    special = (tokens.image_id, tokens.end_id, model.language.end_ids()[0])
    length = train_step.QUICK_LENGTH if options.quick else train_step.LENGTH
    kinds = {
        "documents": train_step.documents(rows, length, *special).to(device),
        "pairs": train_step.pairs(rows, *special).to(device),
    }
    optimizer = optimizer_for(model, model.trained_parameters(), CONFIG)

    def autocast() -> Any:
        half = dtype == torch.bfloat16
        return torch.autocast(device, dtype) if half else contextlib.nullcontext()

    step = train_step.our_step(model, optimizer, autocast)
    fastest = train_step.peak(device, dtype, brief=options.quick)
    for kind, batch in kinds.items():
        times = train_step.take_turns({"ours": step}, [batch], device, 1 if options.quick else 10)
        with FlopCounterMode(display=False) as counter:
            step([batch])
        seconds, flops = statistics.median(times["ours"]), counter.get_total_flops()
        told(
            model=size,
            rows=rows,
            step=kind,
            dtype=str(dtype).removeprefix("torch."),
            samples_per_s=rows / seconds,
            low=rows / max(times["ours"]),
            high=rows / min(times["ours"]),
            tflop=flops / 1e12,
            mfu=None if known is None else flops / seconds / known,
            peak="unknown card" if known is None else known / 1e12,
            share_of_matrix_product=flops / seconds / fastest,
            matrix_product_tflops=fastest / 1e12,
            **memory(device),
        )
