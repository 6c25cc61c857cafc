"""What every request passes before anything reads it: host, key, room, size and pace of its body.

Nothing of a request is logged but its route, status, time, size and a hash of its body.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from isthmus.errors import error_place
from isthmus.serving.metrics import Metrics
from isthmus.serving.refusals import Refusal
from isthmus.serving.settings import ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("isthmus.serving")
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_DRAINED_S = 1.0


class Admission:
    """ASGI middleware in front of all routes.

    Args:
        app: What comes behind.
        settings: Key, hosts and limits.
        metrics: Counts requests.
        closing: Set when the server shuts down; new requests are told so.
    """

    def __init__(
        self, app: Any, settings: ServerSettings, metrics: Metrics, closing: asyncio.Event
    ) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.closing = closing
        self._key = _digest(settings.api_key.encode()) if settings.api_key else None
        self._inside = 0
        self._held = 0
        # Bodies are held while requests wait; each has a place in the queue or in the batch
        self._most = settings.max_queue + settings.max_batch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or refuses it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        visit = _Visit(scope, send)
        counted = False
        try:
            headers = _headers(scope)
            self._check_host(headers)
            self._check_key(scope, headers)
            if self.closing.is_set():
                raise Refusal(503, "the server is shutting down", "shutting_down")
            if scope["method"] in ("POST", "PUT", "PATCH"):
                if self._inside >= self._most:
                    raise Refusal(
                        429, f"{self._inside} requests are waiting: come back later", "queue_full"
                    )
                self._inside += 1
                counted = True
                body = await self._body(headers, receive, visit)
                visit.digest = hashlib.sha256(body).hexdigest()[:12]
                receive, body = _replayed(body, receive), b""
            await self.app(scope, receive, visit.send)
        except Refusal as refusal:
            await self._refuse(visit, headers, receive, refusal)
        except ClientGone:
            visit.status = 499
        except Exception as error:
            log.error("a request failed: %s", error_place(error))
            failed = Refusal(500, "the server failed; its log says why", "internal_error")
            await self._refuse(visit, headers, receive, failed)
        finally:
            self._inside -= counted
            self._held -= visit.size
            self._done(visit)

    def _check_host(self, headers: dict[str, str]) -> None:
        """On loopback, a page of the web must not reach us under a name of its own (rebinding)."""
        if not self.settings.is_loopback:
            return
        named = headers.get("host", "")
        host = named[1 : named.find("]")] if named.startswith("[") else named.partition(":")[0]
        if host.lower() not in (*_OWN_NAMES, self.settings.host, *self.settings.allowed_hosts):
            raise Refusal(
                400,
                "the Host header names another machine: call the server as 127.0.0.1 or "
                "localhost, or start it with --allow-host NAME",
                "invalid_host",
            )

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> None:
        if self._key is None or scope["path"] == "/health":
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Hashes have one length, and comparing them takes the same time whatever was sent
        same = hmac.compare_digest(_digest(given.strip().encode("latin-1")), self._key)
        if kind.lower() != "bearer" or not same:
            raise Refusal(
                401,
                'expected the header "Authorization: Bearer KEY" with the key that the server '
                "was started with",
                "invalid_api_key",
            )

    async def _body(self, headers: dict[str, str], receive: Receive, visit: _Visit) -> bytes:
        """The whole body, within its limits of size and time, and of all bodies together."""
        most = self.settings.max_body
        too_large = Refusal(
            413, f"the body has more than {most:,} bytes: send smaller images", "body_too_large"
        )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    piece = message.get("body", b"")
                    visit.size += len(piece)
                    self._held += len(piece)
                    if visit.size > most:
                        raise too_large
                    if self._held > self.settings.max_held:
                        raise Refusal(429, "too many large requests: come back later", "queue_full")
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        visit.read = True
                        return b"".join(pieces)
        except TimeoutError:
            raise Refusal(
                408,
                f"the body had not arrived after {self.settings.body_timeout:g} s",
                "body_timeout",
            ) from None

    async def _refuse(
        self, visit: _Visit, headers: dict[str, str], receive: Receive, refusal: Refusal
    ) -> None:
        if visit.started:  # an answer that had begun cannot be ended well: the connection closes
            return
        read = visit.read or await _drain(receive, 4 * self.settings.max_body, refusal.status)
        body = json.dumps(refusal.body).encode()
        head = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **refusal.headers,
        }
        if not read:
            head["connection"] = "close"
        listed = [(k.lower().encode(), v.encode()) for k, v in head.items()]
        await visit.send(
            {"type": "http.response.start", "status": refusal.status, "headers": listed}
        )
        await visit.send({"type": "http.response.body", "body": body})

    def _done(self, visit: _Visit) -> None:
        seconds = time.perf_counter() - visit.began
        self.metrics.requests.labels(visit.route, str(visit.status)).inc()
        told = ""
        if visit.size:
            told = f" {visit.size} bytes {visit.digest}"
        log.info("%s %s %s %.3f s%s", visit.method, visit.route, visit.status, seconds, told)


class ClientGone(Exception):
    """The client has left; nobody is there to be answered."""


class _Visit:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.size = 0
        self.digest = ""
        self.read = False
        self.began = time.perf_counter()
        self.status = 0
        self.started = False

    @property
    def method(self) -> str:
        """GET, POST, ...; anything else as one name, since clients may make some up."""
        method = str(self._scope["method"])
        known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
        return method if method in known else "OTHER"

    @property
    def route(self) -> str:
        """The route's pattern, not the path: what a client wrote is neither logged nor counted."""
        return str(getattr(self._scope.get("route"), "path", "unmatched"))

    async def send(self, message: Message) -> None:
        """Passes a message on and keeps its status."""
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
        await self._send(message)


def _headers(scope: Scope) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, which is not kept; afterwards whatever the connection says."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def _drain(receive: Receive, most: int, status: int) -> bool:
    """Reads on for a moment, since a client still writing would not see the answer otherwise.

    Returns:
        Whether the body has come to its end, so that the connection can be used again.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0 if status == 408 else _DRAINED_S):
            while size <= most:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
                size += len(message.get("body", b""))
    return False
