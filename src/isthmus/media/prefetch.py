"""Work done ahead of need, by threads, in order. Pure: no torch.

Decoding and resizing images runs outside of Python's lock, and so does reading files, so threads
are enough: nothing is copied between processes, and nothing is left over when one is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from isthmus.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    items: Iterable[Item], work: Callable[[Item], Result], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Results of `work` for each item, in order, computed ahead by threads.

    Items are drawn in the caller's thread, and only as they are needed, so that an endless
    iterator is fine. Closing the iterator drops what has not begun; nothing waits for it.

    Args:
        items: What to work on.
        work: Called in a thread, once per item.
        workers: Number of threads; 0 works in the caller's thread, when a result is asked for.
        ahead: Most items that are drawn and whose results have not been taken.

    Raises:
        ConfigError: If `workers` is below 0 or `ahead` below 1.
        Exception: Whatever `work` raises, at its item's place; nothing comes after it.

    Example:
        >>> list(prefetch(range(4), lambda i: i * i, workers=2, ahead=3))
        [0, 1, 4, 9]
    """
    if workers < 0 or ahead < 1:
        raise ConfigError(f"workers is {workers} and ahead {ahead}: expected at least 0 and 1")
    return _pooled(items, work, workers, ahead) if workers else (work(item) for item in items)


def _pooled(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int, ahead: int
) -> Generator[Result, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) == ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
