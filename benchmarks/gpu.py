"""What one graphics card does: decoding, serving and a training step, within eight minutes.

    python benchmarks/gpu.py [--out gpu.jsonl] [--parts decode train ...] [--quick] [--device cpu]

Needs this repository and no download: models of stated sizes with random weights are made here
(`gpu_models.py`), and the shipped `tiny` is measured where its weights are in the cache
(`isthmus assets fetch --all`). Each part is a process of its own with a budget in seconds. A figure
is written to `--out`, a JSON object a line, as soon as it is there. A part that fails or is late is
written down so, and the next one begins.

    graphs               decoding steps as CUDA graphs beside eager ones: equal to 1e-5, or the part
                         fails; then the time of each
    decode               tokens a second of 1, 16 and 64 rows in one pass: the engine beside
                         Transformers' `generate`, as it comes and, on a card, with a static cache
    train                a training step of `train_step.py` with a model FLOPs utilisation (MFU):
                         counted FLOPs over measured seconds, over the card's bf16 peak by its name
    export               an inline model written as a LLaVA, for the servers
    serve                tokens a second and time to the first text of 1, 16 and 64 clients: ours,
    serve_transformers   `transformers serve` with continuous batching and without, and `vllm serve`
    serve_vllm           where it is installed

    ratio graphs_M_N     the eager step's time over the recorded one's, model M, N rows
    ratio decode_M_N     ours over Transformers', and `decode_static_M_N` with a static cache
    ratio serve_N        ours over each other server, tokens a second, N clients

`--quick --device cpu` runs all of it on toy models in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts import Told, decode, graphs, train
from gpu_serving import export, serve, serve_transformers, serve_vllm

BUDGETS = {
    "graphs": 60,
    "decode": 80,
    "train": 50,
    "export": 40,
    "serve": 50,
    "serve_transformers": 70,
    "serve_vllm": 120,
}
"""Seconds of each part on a card, 470 in all; three times as many on a CPU."""


# --- the parts, one after another -----------------------------------------------------------------


PARTS: dict[str, Callable[[Told, argparse.Namespace], None]] = {
    "graphs": graphs,
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
