"""llama.cpp as the engine beside llama.cpp alone, in CPU time, for machines that are busy.

    python benchmarks/llama_engine.py [--quick] [--gguf FILE]

SmolLM2-135M-Instruct in Q4_1 on both sides, one thread, one process, in turn: ours through
`im.load("tiny", engine="llama")` (`pip install llama-cpp-python`), and the server of `pip install
xllamacpp`. Milliseconds of CPU time of the process, which other processes move little. A further
token is what 49 tokens take more than one. `laptop.py` has both by the clock.

    ratio engine_cpu         llama.cpp's CPU time of a further token over ours, least of the lengths
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laptop import ENGINE, IMAGE, QUESTION, gguf_file, handed_over

LENGTHS, NEW = (16, 64, 256), 49


def seconds(run: Callable[[], Any]) -> float:
    """CPU time of this process."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Prints the medians and the `ratio` line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gguf", default="")
    options = parser.parse_args()
    for module, package in (("llama_cpp", "llama-cpp-python"), ("xllamacpp", "xllamacpp")):
        if importlib.util.find_spec(module) is None:
            print(f"{package} is not installed: all is left out (pip install {package})")
            return
    with tempfile.TemporaryDirectory() as folder:
        measured(options.gguf or gguf_file(Path(folder)), options.quick)


def measured(gguf: str, quick: bool) -> None:
    """The medians and the ratio."""
    import torch

    import isthmus as im
    from isthmus.prompts.templates import template_named

    torch.set_num_threads(1)
    xllamacpp: Any = importlib.import_module("xllamacpp")
    asked = xllamacpp.CommonParams()
    asked.model.path = gguf
    asked.n_ctx, asked.n_parallel, asked.n_gpu_layers = 1024, 1, 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.verbosity = 0
    server = xllamacpp.Server(asked)
    model = im.load("tiny", engine="llama")
    engine, image = im.Engine(model), im.open_image(IMAGE)
    question = template_named(model.config.template)([], im.Example(image, QUESTION)).text

    def theirs(length: int, new: int) -> float:
        body = {"prompt": [582] * length, "n_predict": new, "temperature": 0}
        body |= {"cache_prompt": False, "ignore_eos": True}
        return seconds(lambda: server.handle_completions(body))

    def ours(length: int, new: int) -> float:
        prompt = im.Prompt(" one" * length)
        return seconds(lambda: engine.generate([prompt], max_new_tokens=new))

    def shown(length: int, new: int) -> float:
        return seconds(lambda: handed_over(model, question, [image], new))

    sides = [(ENGINE, ours), ("llama.cpp", theirs)]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(2 if quick else 5):
        for length in LENGTHS[:1] if quick else LENGTHS:
            for name, side in [*sides, ("image and question", shown)]:
                first, whole = side(length, 1), side(length, NEW)
                if turn:
                    taken = (1e3 * first, 1e3 * (whole - first) / (NEW - 1))
                    found.setdefault((name, length), []).append(taken)
    token = {}
    for (name, length), rows in found.items():
        prompt, token[name, length] = (statistics.median(each) for each in zip(*rows, strict=True))
        print(f"{name:<19}{length:>5}: prompt {prompt:.1f} ms, a token {token[name, length]:.1f}")
    lengths = [length for name, length in token if name == ENGINE]
    least = min(token["llama.cpp", length] / token[ENGINE, length] for length in lengths)
    print(f"ratio engine_cpu {least:.2f}")


if __name__ == "__main__":
    main()
