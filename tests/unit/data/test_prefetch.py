from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from isthmus.data.prefetch import prefetch


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ahead", [1, 5, 100])
def test_results_are_in_order(workers: int, ahead: int) -> None:
    def work(n: int) -> int:
        time.sleep(0.002 * (n % 3))  # later ones are done first
        return n * n

    found = list(prefetch(range(20), work, workers=workers, ahead=ahead))
    assert found == [n * n for n in range(20)]


def test_it_takes_no_more_items_ahead_than_it_may() -> None:
    taken = []

    def items() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = prefetch(items(), lambda n: n, workers=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 3 + 4
    results.close()


def test_an_error_stands_in_its_items_place() -> None:
    def work(n: int) -> float:
        return 1 / (2 - n)

    results = prefetch(range(5), work, workers=2, ahead=5)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_stopping_early_leaves_no_thread_and_starts_nothing_new() -> None:
    begun = []
    gate = threading.Event()

    def work(n: int) -> int:
        begun.append(n)
        if n > 0:
            gate.wait(5)
        return n

    results = prefetch(range(100), work, workers=1, ahead=50)
    assert next(results) == 0
    threading.Timer(0.05, gate.set).start()
    results.close()
    assert len(begun) <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_it_really_works_ahead() -> None:
    ready = threading.Event()
    results = prefetch([0, 1], lambda n: ready.set() if n else None, workers=1, ahead=2)
    next(results)
    assert ready.wait(5), "the second item was not begun before it was asked for"
    results.close()
