"""Work done ahead in threads, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    items: Iterable[T], work: Callable[[T], R], *, workers: int, ahead: int
) -> Iterator[R]:
    """`map(work, items)`, up to `ahead` items of it computed before they are asked for.

    Items are taken, and results handed out, in the caller's thread and in order; an exception of
    `work` is raised where its item's result would stand.

    Args:
        items: May be endless; taken no further ahead than needed.
        work: Runs in a thread.
        workers: Threads; 0 computes each result when it is asked for.
        ahead: Most results that wait, at least one.

    Example:
        >>> list(prefetch("abc", str.upper, workers=2, ahead=2))
        ['A', 'B', 'C']
    """
    if workers == 0:
        yield from map(work, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in islice(source, max(1, ahead)):
                waiting.append(pool.submit(work, item))
            while waiting:
                result = waiting.popleft().result()
                for item in islice(source, 1):
                    waiting.append(pool.submit(work, item))
                yield result
        finally:  # also where the caller stops early: what has not begun never will
            for future in waiting:
                future.cancel()
