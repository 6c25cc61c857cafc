"""The server at its limit for ten minutes: does anything break, leak, or get lost?

    python benchmarks/soak.py [--quick] [--minutes 10] [--clients 32] [--model tiny] [--threads 2]

A process of `isthmus serve` with a queue of 16, a batch of 8 and 128 MB for what it keeps, and 32
clients that hardly wait: whole and streamed answers, images new and known, several images,
demonstrations, steps, clients that leave in the middle, wrong requests, decompression bombs, bodies
that are no JSON. After every fifth of the time all clients pause.

Asserted: every 200 is a whole answer; every refusal has OpenAI's form and an expected status; the
server is well at the end; and its own memory after the whole is at most a tenth above that after
the first fifth, which filled its caches.

    ratio soak_memory   memory at the end over memory after the first fifth

`--quick` is 15 seconds of 4 clients, too short for its caches to fill: memory is not asserted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from isthmus.media.data_uri import data_uri

EXPECTED = {400, 404, 413, 415, 422, 429, 503}
MODEL = "soaked"


def image(rng: random.Random, kinds: int) -> str:
    """One of so many images."""
    seed = rng.randrange(kinds)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((240, 200)).save(data, "PNG")
    return data_uri(data.getvalue())


def bomb() -> str:
    """A header that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return data_uri(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rest)


def body_of(rng: random.Random, kind: str) -> dict[str, Any]:
    """A request of a kind."""
    text: Any = rng.choice(["Hello", "What is the moon?", "Name three fruits.", "x" * 500])
    asked: dict[str, Any] = {"max_tokens": rng.choice([1, 8, 24]), "seed": rng.randrange(9)}
    if kind in ("image", "several", "bomb"):
        count = {"several": 3}.get(kind, 1)
        shown = [bomb() if kind == "bomb" else image(rng, 400) for _ in range(count)]
        parts = [{"type": "image_url", "image_url": {"url": one}} for one in shown]
        text = [*parts, {"type": "text", "text": "What is in the picture?"}]
    if kind == "shots":
        asked["shots"] = [{"images": [image(rng, 8)], "question": "What?", "answer": "noise"}]
        asked["reasoning"] = rng.random() < 0.5
    if kind == "wrong":
        asked |= rng.choice([{"model": "other"}, {"n": 99}, {"temperature": -1}, {"stop": [""]}])
    if kind == "drawn":
        asked |= {"temperature": 1.0, "n": 2, "logprobs": True}
    return {"messages": [{"role": "user", "content": text}], **asked}


KINDS = ["plain"] * 4 + ["drawn", "stream", "stream", "leave", "image", "image", "several"]
KINDS += ["shots", "wrong", "bomb", "garbage"]


def client(url: str, seed: int, ends: float, told: Counter[str], broken: list[str]) -> None:
    """One client until time is up."""
    rng = random.Random(seed)
    with httpx.Client(timeout=120) as http:
        while time.monotonic() < ends:
            kind = rng.choice(KINDS)
            place = f"{url}/v1/chat/completions"
            try:
                if kind == "garbage":
                    answer = http.post(
                        place, content=b"{" * 10_000, headers={"Content-Type": "application/json"}
                    )
                elif kind in ("stream", "leave"):
                    told[f"{kind} {streamed(http, place, rng, kind == 'leave', broken)}"] += 1
                    continue
                else:
                    answer = http.post(place, json=body_of(rng, kind))
            except httpx.HTTPError as error:
                broken.append(f"{kind}: {type(error).__name__} {error}")
                continue
            told[f"{kind} {answer.status_code}"] += 1
            check(kind, answer.status_code, answer.content, broken)
            if answer.status_code == 429:
                time.sleep(float(answer.headers["Retry-After"]) * rng.random())


def streamed(
    http: httpx.Client, place: str, rng: random.Random, leaves: bool, broken: list[str]
) -> int:
    """A streamed answer, read to its end or not."""
    asked = {**body_of(rng, "plain"), "stream": True, "max_tokens": 24}
    with http.stream("POST", place, json=asked) as answer:
        if answer.status_code != 200:
            check("stream", answer.status_code, answer.read(), broken)
            return answer.status_code
        last = ""
        for line in answer.iter_lines():
            if leaves and rng.random() < 0.2:
                return 200
            last = line or last
        if not leaves and last != "data: [DONE]":
            broken.append(f"a stream ended with {last[:200]}")
    return 200


def check(kind: str, status: int, content: bytes, broken: list[str]) -> None:
    """Whether an answer is whole, or a refusal as refusals are."""
    try:
        told = json.loads(content)
        if status == 200:
            good = kind not in ("wrong", "bomb", "garbage")
            good = good and all(c["finish_reason"] for c in told["choices"])
        else:
            good = status in EXPECTED and bool(told["error"]["message"])
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        broken.append(f"{kind}: {status} {content[:200]!r}")


def memory(process: int) -> float:
    """A process's own megabytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def main() -> None:
    """Runs it, prints what came back, and asserts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 seconds, 4 clients")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.clients = 0.25, 4
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "isthmus.cli", "serve", options.model, "--port", str(port)]
    command += ["--max-batch", "8", "--max-queue", "16", "--memory", "128", "--name", MODEL]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    told: Counter[str] = Counter()
    broken: list[str] = []

    def run(minutes: float, seed: int) -> None:
        ends = time.monotonic() + 60 * minutes
        threads = [
            threading.Thread(target=client, args=(url, 1000 * seed + i, ends, told, broken))
            for i in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.2 if options.quick else 2)  # what was left is let go

    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(240):
                time.sleep(0.5)
                try:
                    if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    continue
            run(options.minutes / 5, 1)
            first = memory(process.pid)
            print(f"after {options.minutes / 5:.1f} minutes {first:.0f} MB", flush=True)
            for part in range(2, 6):
                run(options.minutes / 5, part)
                print(f"after {part * options.minutes / 5:.1f}: {memory(process.pid):.0f} MB")
            last = memory(process.pid)
            well = httpx.get(f"{url}/health", timeout=10).status_code == 200
            metrics = httpx.get(f"{url}/metrics", timeout=10).text
            process.terminate()
            ended = process.wait(60)
        finally:
            process.kill()
        log.seek(0)
        said = log.read().decode()
    for kind, count in sorted(told.items()):
        print(f"{kind:<16}{count:>8}")
    idle = [line for line in metrics.splitlines() if "running" in line or "queue" in line]
    print("\n".join(line for line in idle if not line.startswith("#")))
    print(f"{sum(told.values()):,} requests, {len(broken)} broken, exit {ended}")
    print(f"ratio soak_memory {last / first:.3f}")
    assert not broken, broken[:5]
    assert well
    assert ended in (0, -15, 143), said[-2000:]  # by the signal that it was sent, as shells say it
    assert "Traceback" not in said, said[-2000:]
    assert options.quick or last <= 1.1 * first, (first, last)


if __name__ == "__main__":
    main()
