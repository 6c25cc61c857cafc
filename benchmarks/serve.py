"""The server beside `transformers serve`, with the same weights on the same machine.

    python benchmarks/serve.py [--quick] [--threads 2] [--turns 3] [--requests 2] [--tokens 32]

SmolLM2-135M-Instruct in float32 behind both, as processes of their own, one at a time and in turn.
1, 4 and 16 clients ask at once, each one question after another: a system message that all share,
different questions, greedy, streamed, at most `--tokens` new tokens. Tokens are counted by
tokenizing what was answered. Transformers serves in two ways, as it comes and with
`--continuous-batching`; the faster of the two is what ours is compared with. A way of theirs that
does not start here is left out.

    ratio serve_throughput_N   tokens a second with N clients, ours over theirs
    ratio serve_first_token_N  median seconds to the first text, theirs over ours
    ratio serve_replicas       with `--replicas 2`, which measures this alone: tokens a second of 16
                               clients, two replicas that share the threads over one process
    ratio serve_first_image  232 ms over ours: an image and a question, over HTTP, `tiny`

The image is a new one each time; the same image again, its tokens known, stands beside it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import isthmus as im

CLIENTS = (1, 4, 16)
AIM = 0.232
SYSTEM = (
    "You are a helpful assistant. Answer in plain words, in a few sentences, without lists, and "
    "say so if you do not know."
)
THINGS = "the moon,bread,a violin,rain,salt,the sea,a bridge,glass,tea,a clock,wool,a lighthouse"
QUESTIONS = [
    f"{ask} {thing}?"
    for thing in THINGS.split(",")
    for ask in ("What is", "How would you explain to a child", "What would I need to know about")
]
IMAGE = Path(__file__).parent.parent / "examples" / "cat.jpg"


class NotServing(RuntimeError):
    """A server that did not start."""


@contextmanager
def server(command: list[str], port: int, threads: int, name: str) -> Iterator[str]:
    """A server's process; gives its base address when it is ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                time.sleep(0.5)
                if process.poll() is not None:
                    log.seek(0)
                    raise NotServing(f"{name} ended: {log.read().decode()[-2000:]}")
                try:
                    if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    continue
            else:
                raise NotServing(f"{name} did not start")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(client: httpx.Client, url: str, body: dict[str, Any]) -> tuple[float, float, str]:
    """Seconds to the first text, seconds to the end, and the text."""
    started, first, text = time.perf_counter(), 0.0, ""
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {answer.read().decode()[:500]}")
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and not first:
                    first = time.perf_counter() - started
                text += piece
    return first, time.perf_counter() - started, text


def load(
    url: str, model: str, clients: int, each: int, tokens: int, turn: int
) -> tuple[float, list[float], dict[str, str]]:
    """Seconds in all, seconds to each first text, and the answers."""
    order = list(QUESTIONS)
    random.Random(turn).shuffle(order)
    answers: dict[str, str] = {}
    firsts: list[float] = []
    failed: list[BaseException] = []
    ready = threading.Barrier(clients + 1)

    def work(number: int) -> None:
        try:
            with httpx.Client(timeout=600) as client:
                ready.wait()
                for k in range(each):
                    question = order[(number * each + k) % len(order)]
                    messages = [
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": question},
                    ]
                    body = {"model": model, "messages": messages, "stream": True}
                    body |= {"max_tokens": tokens, "temperature": 0}
                    first, _, text = ask(client, url, body)
                    firsts.append(first)
                    answers[f"{number} {k} {question}"] = text
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - started, firsts, answers


def first_image(url: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds to the first text with a new image, and with the same image again."""
    image = im.open_image(IMAGE)

    def body(shift: int) -> dict[str, Any]:
        data = io.BytesIO()
        image.crop((shift, shift, image.width, image.height)).save(data, "JPEG", quality=90)
        shown = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": shown}},
            {"type": "text", "text": "What is in the picture?"},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": "tiny", "messages": messages, "stream": True, "max_tokens": 8}

    new, again = [], []
    with httpx.Client(timeout=600) as client:
        for i in range(repeats + 2):
            sent = body(i)
            times = [ask(client, url, sent)[0] for _ in range(2)]
            if i >= 2:  # the first two warm up
                new.append(times[0])
                again.append(times[1])
    return new, again


def tell(
    ratio: str,
    of: dict[str, list[float]],
    unit: str,
    power: int,
    best: Callable[[Iterable[Any]], Any],
) -> None:
    """A ratio of medians of turns, ours to the best of the others; more than 1 is ahead."""
    own, others = of["ours"], {name: found for name, found in of.items() if name != "ours"}
    peer = best((statistics.median(found), name) for name, found in others.items())[1]
    ratios = [(a / b) ** power for a, b in zip(own, others[peer], strict=True)]
    print(
        f"ratio {ratio} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; "
        f"{statistics.median(own):.1f} {unit}, {peer} {statistics.median(others[peer]):.1f})"
    )


def replicas(options: argparse.Namespace) -> None:
    """One process with all threads, and replicas that share them."""
    ours = [sys.executable, "-m", "isthmus.cli", "serve", "tiny", "--port", str(options.port)]
    ours += ["--template", "chat"]
    tokenizer = im.load_language("asset:smollm2-135m-instruct").tokenizer
    ratios = []
    for turn in range(1 if options.quick else options.turns):
        rates = []
        for count in (options.replicas, 1):
            threads = max(1, options.threads // count)
            command = [*ours, "--replicas", str(count)] if count > 1 else ours
            with server(command, options.port, threads, f"{count} replicas") as url:
                load(url, "tiny", 4, 1, 4, 0)
                took, firsts, answers = load(
                    url, "tiny", 16, options.requests, options.tokens, turn
                )
            many = sum(len(tokenizer(text)["input_ids"]) for text in answers.values())
            rates.append(many / took)
            first = 1000 * statistics.median(firsts)
            print(f"{count} replicas: {many / took:.1f} tokens/s, first {first:.0f} ms", flush=True)
        ratios.append(rates[0] / rates[1])
    print(
        f"ratio serve_replicas {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def shipped(options: argparse.Namespace) -> None:
    """A new image and a question to the shipped default, to the first text."""
    command = [sys.executable, "-m", "isthmus.cli", "serve", "tiny", "--port", str(options.port)]
    with server(command, options.port, options.threads, "tiny") as url:
        new, again = first_image(url, 5 if options.quick else 30)
    middle = statistics.median(new)
    print(
        f"ratio serve_first_image {AIM / middle:.2f} ({1000 * middle:.0f} ms, "
        f"{1000 * min(new):.0f} to {1000 * max(new):.0f}; the same image again "
        f"{1000 * statistics.median(again):.0f} ms)"
    )


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--port", type=int, default=8741)
    parser.add_argument("--replicas", type=int, default=1, help="needs Ray Serve; nothing else")
    parser.add_argument("--image", action="store_true", help="the shipped default, nothing else")
    options = parser.parse_args()
    if options.replicas > 1:
        return replicas(options)
    if options.image:
        return shipped(options)
    turns = 1 if options.quick else options.turns
    requests = 1 if options.quick else options.requests
    tokens = 16 if options.quick else options.tokens
    numbers = CLIENTS[:2] if options.quick else CLIENTS
    language = im.load_language("asset:smollm2-135m-instruct")
    tokenizer = language.tokenizer
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "smollm2")
        language.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del language
        theirs = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder]
        theirs += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
        ours = [sys.executable, "-m", "isthmus.cli", "serve"]
        port = ["--port", str(options.port)]
        ways = {
            "ours": ([*ours, f"hf:{folder}", *port], "smollm2"),
            "transformers": ([*theirs, *port], folder),
            "transformers, batching": ([*theirs, "--continuous-batching", *port], folder),
        }
        rates: dict[tuple[str, int], list[float]] = {}
        firsts: dict[tuple[str, int], list[float]] = {}
        said: dict[str, dict[str, str]] = {}
        for turn in range(turns):
            for name, (command, model) in list(ways.items()):
                try:
                    with server(command, options.port, options.threads, name) as url:
                        load(url, model, 2, 1, 4, 0)  # warms up
                        asked = {n: load(url, model, n, requests, tokens, turn) for n in numbers}
                except NotServing as error:
                    if name == "ours":
                        raise SystemExit(str(error)) from error
                    print(f"left out: {error}", flush=True)
                    del ways[name]
                    continue
                for clients, (took, times, answers) in asked.items():
                    many = sum(len(tokenizer(text)["input_ids"]) for text in answers.values())
                    rates.setdefault((name, clients), []).append(many / took)
                    firsts.setdefault((name, clients), []).append(statistics.median(times))
                    said.setdefault(name, {}).update(
                        {f"{turn} {clients} {key}": text for key, text in answers.items()}
                    )
                    print(
                        f"turn {turn}, {name}, {clients} clients: {many / took:.1f} tokens/s, "
                        f"first {1000 * statistics.median(times):.0f} ms",
                        flush=True,
                    )
        for name in list(ways)[1:]:
            both = [key for key in said["ours"] if key in said[name]]
            same = sum(said["ours"][k].strip() == said[name][k].strip() for k in both)
            print(f"the same text as {name}: {same} of {len(both)}")
        for clients in numbers if len(ways) > 1 else ():
            of = {name: rates[name, clients] for name in ways}
            tell(f"serve_throughput_{clients}", of, "tokens/s", 1, max)
            of = {name: [1000 * s for s in firsts[name, clients]] for name in ways}
            tell(f"serve_first_token_{clients}", of, "ms", -1, min)
    shipped(options)


if __name__ == "__main__":
    main()
