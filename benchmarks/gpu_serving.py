"""The parts of `gpu.py` that start servers: ours, Transformers' and vLLM's, on one folder."""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from gpu_parts import COUNTS, Told

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
