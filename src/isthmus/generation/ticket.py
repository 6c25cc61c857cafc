"""What the asker of a request holds: its events as they come, from a thread or from asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from threading import Condition
from typing import Protocol

from isthmus.generation.requests import Delta, Finished, TokenLogprob

Event = Delta | Finished


class Sink(Protocol):
    """Where a request's events go.

    Attributes:
        cancelled: Whether whoever asked has left.
    """

    cancelled: bool

    def put(self, event: Event | BaseException) -> None:
        """Takes an event; nothing comes after `Finished` or an error."""
        ...

    def cancel(self) -> None:
        """Ends the request, if it has not ended."""
        ...


class Mailbox:
    """The events of a request that is computed in the asker's own thread.

    Attributes:
        cancelled: Whether the asker has left.
        events: Those that nobody has read yet.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.events: deque[Event] = deque()

    def put(self, event: Event | BaseException) -> None:
        """Adds an event.

        Raises:
            BaseException: The event, if it is an error: the asker is the caller.
        """
        self.events.append(_or_raise(event))

    def cancel(self) -> None:
        """Ends the request before its next token."""
        self.cancelled = True


class Ticket:
    """One request on its way.

    Its events are read once, in one of three ways: `events()` in a thread, `async for` in an
    asyncio loop, or `result()` for all at once. Whoever stops reading before the end cancels.

    Args:
        leave: Called at most once, when somebody cancels.

    Attributes:
        cancelled: Whether somebody has cancelled.
    """

    def __init__(self, leave: Callable[[Ticket], None]) -> None:
        self.cancelled = False
        self._leave = leave
        self._there = Condition()
        self._events: deque[Event | BaseException] = deque()
        self._ended = False
        self._wake: Callable[[], None] | None = None

    def put(self, event: Event | BaseException) -> None:
        """Adds an event; nothing comes after `Finished` or an error. The engine's side."""
        with self._there:
            if self._ended:
                return
            self._ended = not isinstance(event, Delta)
            self._events.append(event)
            self._there.notify()
            wake = self._wake
        if wake is not None:
            wake()

    def cancel(self) -> None:
        """Ends the request, if it has not ended; from any thread, and as often as one likes."""
        with self._there:
            if self.cancelled or self._ended:
                return
            self.cancelled = True
        self._leave(self)

    def events(self) -> Iterator[Event]:
        """Pieces of text, then how the request ended; waits for each.

        Raises:
            Exception: Whatever ended the request, where it failed.
        """
        ended = False
        try:
            while not ended:
                with self._there:
                    while not self._events:
                        self._there.wait()
                    event = self._events.popleft()
                ended = not isinstance(event, Delta)
                yield _or_raise(event)
        finally:
            if not ended:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """As `events`, without holding up the loop."""
        loop, there = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may have been closed meanwhile
                loop.call_soon_threadsafe(there.set)

        ended = False
        try:
            while not ended:
                with self._there:
                    event = self._events.popleft() if self._events else None
                    # woken only while waiting: many tokens may come before the loop has its turn
                    self._wake = wake if event is None else None
                if event is None:
                    await there.wait()
                    there.clear()
                    continue
                ended = not isinstance(event, Delta)
                yield _or_raise(event)
        finally:
            if not ended:
                self.cancel()

    def result(self) -> tuple[str, tuple[TokenLogprob, ...], Finished]:
        """The whole text, its tokens where they were asked for, and how it ended.

        Raises:
            Exception: Whatever ended the request, where it failed.
        """
        text: list[str] = []
        tokens: list[TokenLogprob] = []
        for event in self.events():
            if isinstance(event, Finished):
                return "".join(text), tuple(tokens), event
            text.append(event.text)
            tokens.extend(event.tokens)
        raise AssertionError("a request ends with Finished or an error")


def _or_raise(event: Event | BaseException) -> Event:
    if isinstance(event, BaseException):
        raise event
    return event
