"""`isthmus serve --replicas 2`: the same answers from both, and from what is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import isthmus as im
from isthmus.generation.server import GenerationRequest, ServingEngine

pytest.importorskip("ray.serve")

SRC = Path(im.__file__).parent.parent
KEY = {"Authorization": "Bearer secret"}
STARTING_S = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    return im.save(made, tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "isthmus.cli", "serve", str(model), "--port", str(port)]
    command += ["--replicas", "2", "--template", "plain"]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "ISTHMUS_API_KEY": "secret"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"serving at http://127.0.0.1:{port}/v1")
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def replicas() -> dict[int, float]:
    """Processor seconds of each replica's process."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica:isthmus" in (place / "cmdline").read_bytes():
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                found[int(place.name)] = (int(fields[11]) + int(fields[12])) / 100
        except OSError:  # ended meanwhile
            continue
    return found


def ask(url: str, text: str) -> str:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 24}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=300)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read off /proc")
def test_two_replicas_answer_as_one_engine(url: str, model: Path) -> None:
    assert httpx.get(f"{url}/v1/models").status_code == 401  # the key is asked for
    ends = time.monotonic() + STARTING_S
    while len(replicas()) < 2 and time.monotonic() < ends:
        time.sleep(0.5)
    before = replicas()
    assert len(before) == 2
    texts = [f"Number {i}?" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: ask(url, text), texts))
    after = replicas()
    assert all(after[pid] > seconds for pid, seconds in before.items())  # both have worked
    with ServingEngine(im.load(model)) as engine:
        for text, answer in zip(texts[:8], answers, strict=False):
            prompt = im.Prompt(f"Question: {text} Answer:")
            request = GenerationRequest(prompt=prompt, max_new_tokens=24, stop=("\n", "Question:"))
            assert answer.strip() == engine.submit(request).result()[0].strip()
    assert len(set(answers)) > 1

    # one is killed: the other goes on, and another comes
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    answered = 0
    ends = time.monotonic() + STARTING_S
    while time.monotonic() < ends and not (answered and len(set(replicas()) - {killed}) == 2):
        body = {"messages": [{"role": "user", "content": texts[0]}], "max_tokens": 24}
        told = httpx.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=300)
        if told.status_code == 200:
            answered += 1
            assert told.json()["choices"][0]["message"]["content"] == answers[0]
        else:  # it was on its way to the one that died
            assert told.status_code in (500, 503)
        time.sleep(0.5)
    assert len(set(replicas()) - {killed}) == 2
    assert ask(url, texts[1]) == answers[1]
