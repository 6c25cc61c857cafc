from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from isthmus.errors import ConfigError
from isthmus.media.prefetch import prefetch


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_results_come_in_order(workers: int, ahead: int) -> None:
    gates = [threading.Event() for _ in range(4)]

    def work(i: int) -> int:
        # With four threads and room, the first four end in reverse order
        if workers == 4 and ahead == 100 and i < 4:
            if i < 3:
                assert gates[i + 1].wait(10)
            gates[i].set()
        return i * i

    assert list(prefetch(range(20), work, workers=workers, ahead=ahead)) == [
        i * i for i in range(20)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_is_drawn_than_ahead(workers: int) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for i in itertools.count():
            drawn += 1
            yield i

    results = prefetch(endless(), str, workers=workers, ahead=5)
    assert drawn == 0
    for taken in range(1, 10):
        assert next(results) == str(taken - 1)
        assert drawn == (taken + 4 if workers else taken)
    results.close()
    assert drawn <= 13


def test_work_runs_at_the_same_time() -> None:
    meeting = threading.Barrier(3)  # passed only by three threads at once
    results = prefetch(range(6), lambda i: meeting.wait(10) * 0 + i, workers=3, ahead=6)
    assert list(results) == list(range(6))


@pytest.mark.parametrize("workers", [0, 3])
def test_an_exception_stands_at_its_items_place(workers: int) -> None:
    def work(i: int) -> int:
        if i == 4:
            raise KeyError("four")
        return i

    results = prefetch(range(10), work, workers=workers, ahead=8)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="four"):
        next(results)
    assert list(results) == []


def test_closing_early_waits_for_nothing() -> None:
    release, begun, finished = threading.Event(), threading.Event(), []

    def work(i: int) -> int:
        if i:
            begun.set()
            release.wait(30)
            finished.append(i)
        return i

    results = prefetch(range(100), work, workers=2, ahead=50)
    assert next(results) == 0
    assert begun.wait(10)
    results.close()  # would hang here if it waited: nothing has set `release`
    threads = [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    release.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(finished) <= 2  # what was waiting was dropped


@pytest.mark.parametrize(("workers", "ahead"), [(-1, 1), (1, 0)])
def test_counts_out_of_range(workers: int, ahead: int) -> None:
    with pytest.raises(ConfigError, match=f"workers is {workers} and ahead {ahead}"):
        prefetch([], str, workers=workers, ahead=ahead)
