"""HTTP that does not wait for ever: for a request's head to arrive, nor for a client to read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from isthmus.serving.refusals import Refusal

HEAD_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with two limits of time that it lacks."""

    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts waiting for the head of the first request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Waits for the head of a later request from its first byte on."""
        if self._head is None and self._between_requests():
            self._expect_head()
        super().data_received(data)
        if self._head is not None and not self._between_requests():
            self._head.cancel()
            self._head = None

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        self._head = None
        if self._between_requests() and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is refused in the form of every other refusal."""
        if self.transport.is_closing():
            return
        body = json.dumps(Refusal(400, msg, "invalid_http").body).encode()
        head = f"HTTP/1.1 400 \r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.transport.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read: it has a while to go on."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timers."""
        for timer in (self._head, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
