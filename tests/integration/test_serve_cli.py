"""`isthmus serve`: a process that answers, and ends well; bad input is one line."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import isthmus as im
from isthmus.cli import main
from isthmus.serving.launch import application
from isthmus.serving.settings import ServerSettings

SRC = Path(im.__file__).parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    return im.save(model, tmp_path_factory.mktemp("models") / "mine")


def test_it_serves_and_ends_when_it_is_told_to(saved: Path) -> None:
    command = [sys.executable, "-m", "isthmus.cli", "serve", str(saved), "--port", "0"]
    command += ["--log-level", "info"]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "ISTHMUS_API_KEY": "from-outside"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split()[2]
            assert line.startswith(f"serving at {url} - try: curl ")
            headers = {"Authorization": "Bearer from-outside"}
            assert httpx.get(f"{url}/models", timeout=300).status_code == 401
            models = httpx.get(f"{url}/models", headers=headers).json()
            assert [m["id"] for m in models["data"]] == ["mine"]
            # what the line tells to try is a request that works
            words = shlex.split(line.partition("curl ")[2])
            answer = httpx.post(
                words[0], content=words[-1], headers={**headers, "Content-Type": "application/json"}
            )
            assert answer.status_code == 200
            # a request that runs when the end comes is finished
            answers: list[httpx.Response] = []
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300}
            begun = threading.Event()

            def long() -> None:
                with httpx.stream(
                    "POST",
                    f"{url}/chat/completions",
                    json={**body, "stream": True},
                    headers=headers,
                    timeout=300,
                ) as answer:
                    lines = answer.iter_lines()
                    next(lines)
                    begun.set()
                    assert [line for line in lines if line][-1] == "data: [DONE]"
                    answers.append(answer)

            asking = threading.Thread(target=long)
            asking.start()
            assert begun.wait(300)
            process.send_signal(signal.SIGTERM)
            asking.join(300)
            assert len(answers) == 1
            _, logged = process.communicate(timeout=300)
            assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
            assert "POST /v1/chat/completions 200" in logged
            assert "Traceback" not in logged
            assert "from-outside" not in logged
        finally:
            process.kill()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["isthmus", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return call


def one_line(found: tuple[int, str], *words: str) -> None:
    code, err = found
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_bad_input_is_one_line(run: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISTHMUS_API_KEY", raising=False)
    one_line(run("nowhere", "--port", 0), "nowhere")
    one_line(run(saved, "--port", 70000), "70000")
    one_line(run(saved, "--host", "0.0.0.0"), "--api-key", "--insecure-no-key")
    one_line(run(saved, "--host", "no.such.host.invalid", "--api-key", "x"), "no address")
    one_line(run(saved, "--log-level", "loud"), "warning")
    one_line(run(saved, "--dtype", "bfloat17"), 'did you mean "bfloat16"?')
    one_line(run(saved, "--port", 0, "--replicas", 3, "--max-replicas", 2), "3 replicas")
    one_line(run(saved, "--timeout", 0), "timeout")
    one_line(run(saved, "--allow-media-domain", "https://example.org"), "without https://")
    one_line(run(saved, "--port", 0, "--template", "chatt"), "chat")
    one_line(run(saved, "--port", 0, "--dual-encoder", "nowhere"), "nowhere")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_and_memory_are_what_was_asked_for(saved: Path, dtype: str) -> None:
    settings = ServerSettings(memory=3 << 20)
    app = application(str(saved), "", settings, "cpu", dtype)
    engine = app.state.engine
    assert {p.dtype for p in engine.model.parameters()} == {getattr(torch, dtype)}

    async def ask() -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=body, timeout=300)

    with engine:
        answer = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] >= 1


def test_a_port_that_is_taken(run: Any, saved: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(run(saved, "--port", port), str(port), "--port")


def test_without_the_extra(run: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    one_line(run(saved), 'pip install "isthmus[serve]"')
