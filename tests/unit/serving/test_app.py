"""The server against clients that mean no good, or leave; and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from isthmus.errors import ConfigError
from isthmus.model.join import bare_language_model
from isthmus.serving.admission import Admission
from isthmus.serving.app import create_app
from isthmus.serving.settings import ServerSettings

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
LONG = [{"role": "user", "content": "Sing"}]
"""The tiny model has much to say to it."""
KEY = {"Authorization": "Bearer key"}


def error_of(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def raw(port: int, data: bytes, wait: float = 10.0) -> bytes:
    """What the server says to some bytes, until it closes or says no more."""
    with socket.create_connection(("127.0.0.1", port), wait) as link:
        link.sendall(data)
        found = b""
        with contextlib.suppress(TimeoutError):
            while piece := link.recv(1 << 16):
                found += piece
        return found


def eventually(check: Callable[[], bool]) -> None:
    for _ in range(1000):
        if check():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 10 s")


def gate_of(app: Any) -> Any:
    layer = app.middleware_stack
    while not isinstance(layer, Admission):
        layer = layer.app
    return layer


class Held:
    """An engine's model held still: no answer is begun until it is let go."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.go = threading.Event()
        self.entered = threading.Event()
        self.hook: Any = None

    def _wait(self, *_: Any) -> None:
        self.entered.set()
        assert self.go.wait(30)

    def __enter__(self) -> Held:
        self.hook = self.model.language.model.register_forward_pre_hook(self._wait)
        return self

    def __exit__(self, *_: Any) -> None:
        self.go.set()
        self.hook.remove()


# --- Who may ask -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer ke",
        "Bearer keyy",
        "Bearer KEY",
        "Basic key",
        "key",
        "Bearer key key",
        "Bearer k\xe9y",
    ],
)
def test_every_route_but_health_wants_the_key(running: Any, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for method, path in (
        ("POST", CHAT),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/classify"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
        ("DELETE", "/health/"),
    ):
        answer = httpx.request(method, running.url + path, headers=headers)
        error_of(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{running.url}/health").json()["status"] == "ok"


def test_keys_are_compared_in_constant_time(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    pairs = []
    own = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: pairs.append((a, b)) or own(a, b))
    for key in ("a", "key", "x" * 5000):
        httpx.get(f"{running.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert len(pairs) == 3
    assert {len(a) for a, _ in pairs} == {len(b) for _, b in pairs} == {32}


def test_strangers_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="--api-key"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, api_key="x").api_key
        assert ServerSettings(host=host, insecure_no_key=True).insecure_no_key
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert ServerSettings(host=host).is_loopback


def test_a_page_of_the_web_cannot_reach_loopback(serve: Any) -> None:
    with serve(allowed_hosts=("box",)) as running:
        for host, good in (
            ("evil.example", False),
            (f"evil.example:{running.port}", False),
            ("127.0.0.1.evil.example", False),
            ("", False),
            ("[::2]", False),
            ("127.0.0.1", True),
            (f"localhost:{running.port}", True),
            ("[::1]:80", True),
            ("box", True),
        ):
            answer = httpx.get(f"{running.url}/v1/models", headers={"Host": host})
            if good:
                assert answer.status_code == 200
            else:
                error_of(answer, 400, "invalid_host")
        # what a page can send without asking first is refused, and asking gets no leave
        simple = httpx.post(running.url + CHAT, content=json.dumps(HI))
        error_of(simple, 415, "unsupported_media_type")
        asking = httpx.options(
            running.url + CHAT,
            headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        )
        assert asking.status_code == 405
        assert not [h for h in asking.headers if h.startswith("access-control")]


def test_pages_that_are_named_may(serve: Any) -> None:
    with serve(cors_origins=("https://good.example",), api_key="key") as running:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        answer = httpx.options(running.url + CHAT, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert (
            httpx.options(
                running.url + CHAT, headers={**headers, "Origin": "https://evil.example"}
            ).status_code
            == 400
        )


# --- Bodies ----------------------------------------------------------------------------------


def test_what_is_no_route_method_or_kind(running: Any) -> None:
    url = running.url
    error_of(httpx.get(f"{url}/nowhere", headers=KEY), 404, "not_found")
    error_of(httpx.get(f"{url}/../etc/passwd", headers=KEY), 404, "not_found")
    missing = httpx.get(f"{url}/v1/models/../../etc/passwd", headers=KEY)
    assert missing.status_code == 404
    wrong = httpx.get(url + CHAT, headers=KEY)
    error_of(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    for kind in ("text/plain", "multipart/form-data", "application/json-patch+json", ""):
        answer = httpx.post(url + CHAT, content=b"{}", headers={**KEY, "Content-Type": kind})
        error_of(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"messages":' * 50_000,
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "seed": 1e999}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "seed": 99999999999999999999999}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "n": true}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": "3"}',
        b"null",
        b"[]",
        b'"text"',
        b"9" * 10_000,
    ],
    ids=lambda b: b[:24].decode("latin-1"),
)
def test_odd_json_is_400(running: Any, body: bytes) -> None:
    headers = {**KEY, "Content-Type": "application/json"}
    for path in (CHAT, "/v1/embeddings", "/v1/classify"):
        answer = httpx.post(running.url + path, content=body, headers=headers)
        error = error_of(answer, 400, answer.json()["error"]["code"])
        assert error["type"] == "invalid_request_error"


def test_a_body_is_measured_while_it_is_read(serve: Any) -> None:
    with serve(max_body=1000) as running:
        headers = {"Content-Type": "application/json"}
        large = json.dumps({**HI, "user": "x" * 2000}).encode()

        def chunks() -> Iterator[bytes]:
            for i in range(0, len(large), 100):
                yield large[i : i + 100]

        for content in (large, chunks()):  # told in a header, and in chunks without a length
            answer = httpx.post(running.url + CHAT, content=content, headers=headers)
            error_of(answer, 413, "body_too_large")
        claimed = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
        assert b" 413 " in raw(running.port, claimed % CHAT.encode())
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200


def test_all_bodies_together_are_measured(serve: Any) -> None:
    """Clients that send half of a body and wait cannot fill the memory."""
    with serve(max_body=1000, max_held=1500) as running, contextlib.ExitStack() as links:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
        half = head.encode() + b"x" * 800
        first = links.enter_context(socket.create_connection(("127.0.0.1", running.port)))
        first.sendall(half)
        gate = gate_of(running.app)
        eventually(lambda: gate._held == 800)
        assert b" 429 " in raw(running.port, half)
        first.close()
        eventually(lambda: gate._held == 0)
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200


def test_a_slow_body_times_out(serve: Any) -> None:
    with serve(body_timeout=0.2) as running:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
        answer = raw(running.port, head.encode())
        assert b" 408 " in answer
        assert b"body_timeout" in answer
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200


def test_a_slow_head_and_no_http(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.serving.protocol.HEAD_TIMEOUT_S", 0.2)
    with serve() as running:
        assert raw(running.port, b"") == b""
        assert raw(running.port, b"POST /v1/chat") == b""
        # a second head on a connection that is kept alive
        with socket.create_connection(("127.0.0.1", running.port), 10) as link:
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while not found.endswith(b"}"):
                found += link.recv(1 << 16)
            link.sendall(b"GET /hea")
            assert link.recv(1 << 16) == b""
        assert b"invalid_http" in raw(running.port, b"\x16\x03\x01\x02\x00\r\n\r\n")
        assert b" 400 " in raw(running.port, b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000)


def test_a_file_is_never_read(serve: Any, dual: Any, tmp_path: Any) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("the secret {}\n")
    with serve(dual_encoder=dual) as running:
        labels = {"images": ["data:image/png;base64,AAAA"], "labels": ["cat"]}
        answer = httpx.post(f"{running.url}/v1/classify", json={**labels, "templates": str(file)})
        error = error_of(answer, 400, "invalid_value")
        assert error["param"] == "templates"
        for url in (str(file), f"file://{file}", f"../../../..{file}"):
            part = {"type": "image_url", "image_url": {"url": url}}
            body = {"messages": [{"role": "user", "content": [part]}]}
            error_of(httpx.post(running.url + CHAT, json=body), 400, "invalid_image_url")
        body = {"input": [str(file)], "model": "dual-encoder"}  # a text like any other
        assert httpx.post(f"{running.url}/v1/embeddings", json=body).status_code == 200


# --- Room ------------------------------------------------------------------------------------


def test_many_requests_are_told_to_come_back(serve: Any, model: Any) -> None:
    with serve(max_batch=2, max_queue=3) as running, Held(model) as held:

        async def flood() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=60)
            async with httpx.AsyncClient(timeout=300, limits=limits) as client:
                tasks = [
                    asyncio.create_task(client.post(running.url + CHAT, json=HI))
                    for _ in range(200)
                ]
                while sum(t.done() for t in tasks) < 195:
                    await asyncio.sleep(0.01)
                held.go.set()
                return await asyncio.gather(*tasks)

        answers = asyncio.run(flood())
        refused = [a for a in answers if a.status_code != 200]
        assert 195 <= len(refused) < 200
        for answer in refused:
            error_of(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200


def test_a_request_may_run_out_of_time(serve: Any, model: Any) -> None:
    with serve(timeout=0.2, max_batch=1) as running, Held(model) as held:
        answers: list[httpx.Response] = []

        def post(body: dict[str, Any]) -> None:
            answers.append(httpx.post(running.url + CHAT, json=body, timeout=300))

        threads = [threading.Thread(target=post, args=(HI,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert held.entered.wait(10)
        time.sleep(0.4)
        held.go.set()
        for thread in threads:
            thread.join()
        late = [a for a in answers if a.status_code == 503]
        assert late
        for answer in late:
            error_of(answer, 503, "timeout")
            assert "retry-after" in answer.headers


# --- Clients that leave ----------------------------------------------------------------------


def cancelled(running: Any) -> int:
    return int(running.app.state.engine.statistics().cancelled)


def test_a_client_that_leaves_is_not_answered_any_further(serve: Any, model: Any) -> None:
    slow = model.language.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        with serve() as running:
            long = {**HI, "messages": LONG, "max_tokens": 200, "stream": True}
            with httpx.stream("POST", running.url + CHAT, json=long, timeout=300) as answer:
                next(answer.iter_lines())
            eventually(lambda: cancelled(running) == 1)
            # before there is anything to tell, and without a stream
            body = json.dumps({**long, "stream": False}).encode()
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", running.port)) as link:
                link.sendall(head.encode() + body)
                time.sleep(0.3)
            eventually(lambda: cancelled(running) == 2)
            assert httpx.post(running.url + CHAT, json=HI).status_code == 200
    finally:
        slow.remove()


def test_concurrent_leavers_leave_nothing_behind(serve: Any, model: Any) -> None:
    slow = model.language.model.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    try:
        with serve(max_batch=4, max_queue=64) as running:

            async def leave(client: httpx.AsyncClient, after: float) -> None:
                body = {"messages": LONG, "max_tokens": 200, "stream": True, "n": 2}
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(after):
                        await client.post(running.url + CHAT, json=body)

            async def all_of_them() -> None:
                async with httpx.AsyncClient(timeout=300) as client:
                    await asyncio.gather(*(leave(client, 0.01 * i) for i in range(24)))

            asyncio.run(all_of_them())
            answer = httpx.post(running.url + CHAT, json=HI, timeout=300)
            assert answer.status_code == 200
            gate = gate_of(running.app)
            eventually(lambda: gate._inside == 0)
    finally:
        slow.remove()


def test_the_space_before_an_answer_is_the_template_s(serve: Any, model: Any) -> None:
    first = [True]

    def space(module: Any, args: Any, logits: Any) -> Any:
        if first.pop() if first else False:
            logits[..., 32] += 1e5
        return logits

    with serve() as running:
        hook = model.language.output_embedding.register_forward_hook(space)
        try:
            answer = httpx.post(running.url + CHAT, json={**HI, "logprobs": True}).json()
        finally:
            hook.remove()
    [choice] = answer["choices"]
    read = "".join(t["token"] for t in choice["logprobs"]["content"])
    assert read[0] == " "
    assert choice["message"]["content"] == read.lstrip()


# --- What is told ----------------------------------------------------------------------------


def test_a_failure_tells_nothing_of_itself(
    serve: Any, model: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret weights at /home/someone")

    with serve() as running:
        broken = model.language.model.register_forward_pre_hook(fail)
        try:
            for stream in (False, True):
                answer = httpx.post(running.url + CHAT, json={**HI, "stream": stream})
                error_of(answer, 500, "internal_error")
                assert "secret" not in answer.text
        finally:
            broken.remove()
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200
    heard = capfd.readouterr().err
    assert "RuntimeError" in heard
    assert "secret" not in heard


def test_a_stream_that_breaks_off_says_so(serve: Any, model: Any) -> None:
    steps = []

    def fail(*_: Any) -> None:
        steps.append(1)
        if len(steps) > 4:
            raise RuntimeError("secret")

    with serve() as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="-") as client:
        broken = model.language.model.register_forward_pre_hook(fail)
        pieces = client.chat.completions.create(
            model="tiny", messages=LONG, max_tokens=50, stream=True
        )
        try:
            assert [next(pieces).choices[0].delta.role, next(pieces).choices[0].delta.role] == [
                "assistant",
                None,
            ]
            with pytest.raises(openai.APIError, match="its log says why"):
                list(pieces)
        finally:
            broken.remove()


def test_no_word_of_a_request_is_logged(
    serve: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(api_key="topsecret") as running, caplog.at_level(logging.DEBUG):
        logging.getLogger("isthmus").setLevel(logging.DEBUG)
        headers = {"Authorization": "Bearer topsecret"}
        body = {"messages": [{"role": "user", "content": "private words"}], "max_tokens": 2}
        for path in (CHAT, f"{CHAT}?private=words", "/private/words"):
            httpx.post(running.url + path, json=body, headers=headers)
        httpx.post(running.url + CHAT, json={**body, "n": "private words"}, headers=headers)
    told = [r.getMessage() for r in caplog.records if r.name.startswith(("isthmus", "uvicorn"))]
    assert any(CHAT in line and " bytes " in line for line in told)
    heard = "\n".join(told) + "".join(capfd.readouterr())
    assert "private" not in heard
    assert "topsecret" not in heard


def test_metrics(serve: Any) -> None:
    with serve() as running:
        httpx.post(running.url + CHAT, json={**HI, "max_tokens": 5})
        httpx.post(running.url + CHAT, json={})
        httpx.get(f"{running.url}/made/up")
        text = httpx.get(f"{running.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines[f'isthmus_requests_total{{route="{CHAT}",status="200"}}'] == "1.0"
    assert lines[f'isthmus_requests_total{{route="{CHAT}",status="400"}}'] == "1.0"
    assert lines['isthmus_requests_total{route="unmatched",status="404"}'] == "1.0"
    assert lines["isthmus_first_token_seconds_count"] == "1.0"
    assert float(lines["isthmus_token_seconds_count"]) <= 4
    assert float(lines["isthmus_decoded_tokens_total"]) >= 0
    assert "isthmus_images_encoded_total" in lines
    assert "isthmus_prefix_hits_total" in lines


def test_no_dual_encoder_says_how_to_get_one(serve: Any) -> None:
    with serve() as running:
        for path, body in (
            ("embeddings", {"input": "a"}),
            ("classify", {"images": ["data:"], "labels": ["a"]}),
        ):
            error = error_of(
                httpx.post(f"{running.url}/v1/{path}", json=body), 404, "model_not_found"
            )
            assert "--dual-encoder" in error["message"]


# --- The end ---------------------------------------------------------------------------------


def test_the_end_finishes_what_runs_and_refuses_what_is_new(serve: Any, model: Any) -> None:
    with serve() as running, Held(model) as held:
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(running.url + CHAT, json={**HI, "max_tokens": 5}, timeout=300)
            )
        )
        asking.start()
        assert held.entered.wait(10)
        with httpx.Client() as client:
            assert client.get(f"{running.url}/health").status_code == 200
            running.app.state.closing.set()  # as on SIGTERM, before the sockets close
            error_of(client.get(f"{running.url}/health"), 503, "shutting_down")
        running.server.should_exit = True
        held.go.set()
        asking.join(20)
        running.thread.join(20)
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] > 0


def test_settings_are_checked() -> None:
    for options in (
        {"port": 70000},
        {"max_batch": 0},
        {"timeout": 0},
        {"api_key": " "},
        {"api_key": "ké"},
        {"media_domains": ("https://example.org",)},
    ):
        with pytest.raises(ConfigError):
            ServerSettings(**options)


def test_a_language_model_alone_sees_no_images(serve: Any, image: str) -> None:
    with serve(bare_language_model("tiny-lm")) as running:
        assert httpx.post(running.url + CHAT, json=HI).status_code == 200
        part = {"type": "image_url", "image_url": {"url": image}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        error = error_of(httpx.post(running.url + CHAT, json=body), 400, "unsupported_value")
        assert error["param"] == "messages.0.content.0.image_url.url"


@pytest.mark.parametrize("together", [True, False])
def test_how_rows_are_decoded_is_said(
    together: bool,
    model: Any,
    serve: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from isthmus.generation import batch

    monkeypatch.setattr(batch, "takes_lanes", lambda model: together)
    with serve() as running:
        health = httpx.get(f"{running.url}/health").json()
        metrics = httpx.get(f"{running.url}/metrics").text
    assert health == {"status": "ok", "rows_together": together}
    assert f"isthmus_rows_together {float(together)}" in metrics

    async def start(app: Any) -> None:
        async with app.router.lifespan_context(app):
            pass

    with caplog.at_level("INFO", logger="isthmus.serving"):
        asyncio.run(start(create_app(model)))
    [said] = [r for r in caplog.records if "rows are decoded" in r.message]
    assert ("together, in one pass" in said.message) == together
    assert (said.levelname == "WARNING") == (not together)
