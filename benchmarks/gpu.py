"""What one graphics card does: decoding, serving and a training step, within eight minutes.

    python benchmarks/gpu.py [--out gpu.jsonl] [--parts decode train ...] [--quick] [--device cpu]

Needs this repository and no download: models of stated sizes with random weights are made here
(`gpu_models.py`), and the shipped `tiny` is measured where its weights are in the cache
(`isthmus assets fetch --all`). Each part is a process of its own with a budget in seconds. A figure
is written to `--out`, a JSON object a line, as soon as it is there. A part that fails or is late is
written down so, and the next one begins.

    decode               tokens a second of 1, 16 and 64 rows in one pass: the engine beside
                         Transformers' `generate`, as it comes and, on a card, with a static cache
    train                a training step of `train_step.py` with a model FLOPs utilisation (MFU):
                         counted FLOPs over measured seconds, over the card's bf16 peak by its name
    export               an inline model written as a LLaVA, for the servers
    serve                tokens a second and time to the first text of 1, 16 and 64 clients: ours,
    serve_transformers   `transformers serve` with continuous batching and without, and `vllm serve`
    serve_vllm           where it is installed

    ratio decode_N       ours over the faster of Transformers' two ways, N rows
    ratio serve_N        ours over each other server, tokens a second, N clients

`--quick --device cpu` runs all of it on toy models in a minute or two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

BUDGETS = {
    "decode": 110,
    "train": 60,
    "export": 40,
    "serve": 60,
    "serve_transformers": 80,
    "serve_vllm": 120,
}
"""Seconds of each part on a card, 470 in all; three times as many on a CPU."""
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


# --- decoding -------------------------------------------------------------------------------------


def decode(told: Told, options: argparse.Namespace) -> None:
    """Tokens a second of so many rows."""
    import gpu_models
    import torch

    from isthmus.assets.registry import cached

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    for size in ["toy"] if options.quick else ["135M", "1.1B", "7B"]:
        model = gpu_models.bare(size, dtype, options.device)
        decode_beside(told, options, size, model)
        del model
    if not options.quick:
        names = ("efficientnet-lite2", "smollm2-135m-instruct")
        if all(cached(name) for name in names):
            told.trying({"model": "tiny"}, lambda: decode_tiny(told, options))
        else:
            told(model="tiny", left_out="its weights are not cached: isthmus assets fetch --all")


def decode_beside(told: Told, options: argparse.Namespace, size: str, model: Any) -> None:
    """Ours and Transformers' on one language model."""
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
        if options.device == "cuda":
            ways["transformers, static"] = partial(theirs, cache_implementation="static")
        rates: dict[str, float] = {}
        for name, way in ways.items():
            what = {"model": size, "rows": rows, "who": name}
            told.trying(what, partial(tell_rate, told, options, way, what, rates))
        if "ours" in rates and len(rates) > 1:
            best = max(rate for name, rate in rates.items() if name != "ours")
            print(f"ratio decode_{size}_{rows} {rates['ours'] / best:.2f}", flush=True)


def tell_rate(
    told: Told,
    options: argparse.Namespace,
    way: Callable[[int], None],
    what: dict[str, Any],
    medians: dict[str, float],
) -> None:
    """Measures a way of decoding, prefill left out; its median goes to `medians`."""
    from decode import decoding_time

    tokens, turns = (8, 1) if options.quick else (64, 3)
    way(2)  # warms up
    rates = [what["rows"] * tokens / decoding_time(way, tokens) for _ in range(turns)]
    median = medians[what["who"]] = statistics.median(rates)
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


# --- serving --------------------------------------------------------------------------------------


def export(told: Told, options: argparse.Namespace) -> None:
    """The folder that all servers load."""
    import gpu_models
    import torch

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    started = time.perf_counter()
    size = "toy" if options.quick else "360M"
    folder = gpu_models.write_inline(Path(options.work), size, dtype, options.device)
    told(model=size, folder=str(folder), seconds=time.perf_counter() - started)


def serve(told: Told, options: argparse.Namespace) -> None:
    """Our server."""
    command = [sys.executable, "-m", "isthmus.cli", "serve", folder_of(options)]
    command += ["--port", str(options.port), "--device", options.device, "--max-batch", "64"]
    command += ["--dtype", "bfloat16" if options.device == "cuda" else "float32"]
    load_server(told, options, "ours", command, "model")


def serve_transformers(told: Told, options: argparse.Namespace) -> None:
    """Transformers' server, in its two ways."""
    folder = folder_of(options)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder]
    command += ["--device", options.device, "--host", "127.0.0.1", "--port", str(options.port)]
    command += ["--dtype", "bfloat16" if options.device == "cuda" else "float32"]
    for name, more in (
        ("transformers, batching", ["--continuous-batching"]),
        ("transformers", []),
    ):
        told.trying(
            {"who": name},
            partial(load_server, told, options, name, [*command, *more], folder),
        )


def serve_vllm(told: Told, options: argparse.Namespace) -> None:
    """VLLM's server, where it is installed."""
    if importlib.util.find_spec("vllm") is None:
        told(who="vllm", left_out="not installed: pip install vllm")
        return
    folder = folder_of(options)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--served-model-name", "model"]
    command += ["--max-model-len", "2048", "--max-num-seqs", "64", "--dtype", "bfloat16"]
    load_server(told, options, "vllm", command, "model")


def folder_of(options: argparse.Namespace) -> str:
    """The exported model."""
    folder = Path(options.work) / "model"
    if not (folder / "config.json").exists():
        raise SystemExit("there is no exported model: the part `export` failed or was left out")
    return str(folder)


def load_server(
    told: Told, options: argparse.Namespace, name: str, command: list[str], model: str
) -> None:
    """Starts a server, and has so many clients ask it."""
    import serve as clients  # benchmarks/serve.py

    tokens, each = (8, 1) if options.quick else (64, 2)
    started = time.perf_counter()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    with clients.server(command, options.port, threads, name) as url:
        ready = time.perf_counter() - started
        clients.load(url, model, 2, 1, 4, 0)  # warms up
        for count in COUNTS[:2] if options.quick else COUNTS:
            took, firsts, answers = clients.load(url, model, count, each, tokens, 0)
            # every token is a small letter, see gpu_models.py
            told(
                who=name,
                clients=count,
                tokens_per_s=sum(map(len, answers.values())) / took,
                first_text_ms=1000 * statistics.median(firsts),
                answers=len(answers),
                ready_s=ready,
            )


# --- the parts, one after another -----------------------------------------------------------------


PARTS: dict[str, Callable[[Told, argparse.Namespace], None]] = {
    "decode": decode,
    "train": train,
    "export": export,
    "serve": serve,
    "serve_transformers": serve_transformers,
    "serve_vllm": serve_vllm,
}


def run_part(name: str, options: argparse.Namespace, budget: float) -> str:
    """Runs a part in a process of its own; what went wrong, or an empty text."""
    command = [sys.executable, "-W", "ignore", __file__, "--part", name, "--out", str(options.out)]
    command += ["--device", options.device, "--port", str(options.port), "--work", options.work]
    command += ["--quick"] if options.quick else []
    with tempfile.TemporaryFile() as log:
        asleep = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
        process = subprocess.Popen(command, stderr=log, start_new_session=True, env=asleep)
        try:
            code = process.wait(budget)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # a server that it has started ends with it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code == 0:
            return ""
        log.seek(0)
        last = log.read().decode(errors="replace").strip()[-800:]
        return last if code is not None else f"later than its {budget:.0f} seconds; {last}"


def main() -> None:
    """Runs the parts, and prints the servers' ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="toy models, 1 and 16 rows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="")
    parser.add_argument("--port", type=int, default=8751)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](Told(options.out, options.part), options)
        return
    import torch
    import transformers

    has = torch.cuda.is_available()
    options.device = options.device or ("cuda" if has or not options.quick else "cpu")
    if options.device == "cuda" and not has:
        raise SystemExit("there is no CUDA device here; on a CPU: --quick --device cpu")
    options.out.write_text("", encoding="utf-8")
    card = torch.cuda.get_device_name(0) if options.device == "cuda" else ""
    Told(options.out, "machine")(
        card=card or platform.processor() or platform.machine(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        cuda=torch.version.cuda if card else None,
        date=time.strftime("%Y-%m-%d"),
    )
    slow = 1 if options.device == "cuda" else 3
    with tempfile.TemporaryDirectory() as options.work:
        for name in options.parts:
            if wrong := run_part(name, options, slow * BUDGETS[name]):
                Told(options.out, name)(failed=wrong)
    lines = [json.loads(line) for line in options.out.read_text("utf-8").splitlines()]
    ratios(lines)
    if any("failed" in line for line in lines):
        raise SystemExit(f'not all was measured: see the lines with "failed" in {options.out}')


def ratios(lines: list[dict[str, Any]]) -> None:
    """Our server beside each of the others."""
    rates = {
        (line["who"], line["clients"]): line["tokens_per_s"] for line in lines if "clients" in line
    }
    for (who, count), rate in rates.items():
        if who != "ours" and ("ours", count) in rates:
            name = who.replace(", ", "_")
            print(f"ratio serve_{count}_{name} {rates['ours', count] / rate:.2f}")


if __name__ == "__main__":
    main()
