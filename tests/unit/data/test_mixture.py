from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.mixture import Mixture

WEIGHTS = [1.0, 0.2, 0.2, 0.03]


def test_shares_hold_over_a_long_draw_and_at_any_time() -> None:
    mixture = Mixture([1000, 50, 7, 90], WEIGHTS, batch_size=64, seed=3)
    counts: Counter[int] = Counter()
    for step in range(500):
        counts.update(d.data for d in mixture.step(step))
        total = 64 * (step + 1)
        for data, weight in enumerate(WEIGHTS):
            # random draws would stray by about sqrt(n), 100 at the end of this run
            assert abs(counts[data] - total * weight / sum(WEIGHTS)) < 5


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 5),
    accumulate=st.booleans(),
    step=st.integers(0, 40),
)
def test_a_step_needs_no_step_before(
    sizes: list[int], seed: int, accumulate: bool, step: int
) -> None:
    def mixture() -> Mixture:
        weights = [1.0 + i for i in range(len(sizes))]
        return Mixture(sizes, weights, batch_size=5, seed=seed, accumulate=accumulate)

    whole = mixture()
    for earlier in range(step):
        whole.step(earlier)
    assert mixture().step(step) == whole.step(step)


def test_each_record_is_seen_once_before_any_is_seen_twice() -> None:
    mixture = Mixture([10, 4], [1.0, 1.0], batch_size=3, seed=0)
    draws = [d for step in range(30) for d in mixture.step(step)]
    for data, size in ((0, 10), (1, 4)):
        own = [d for d in draws if d.data == data]
        for epoch in range(own[-1].epoch):
            seen = [d.index for d in own if d.epoch == epoch]
            assert sorted(seen) == list(range(size))
        orders = {tuple(d.index for d in own if d.epoch == e) for e in range(own[-1].epoch)}
        assert len(orders) > 1, "every epoch in the same order"


def test_samples_are_numbered_through() -> None:
    mixture = Mixture([5, 5], [1.0, 2.0], batch_size=4, seed=0)
    assert [d.number for s in range(3) for d in mixture.step(s)] == list(range(12))


def test_accumulation_takes_of_every_set_in_each_step() -> None:
    mixture = Mixture([9, 9, 9], [1.0, 0.5, 0.01], batch_size=8, seed=0, accumulate=True)
    for step in range(4):
        assert Counter(d.data for d in mixture.step(step)) == {0: 8, 1: 4, 2: 1}
    assert mixture.batch_size == 13


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_set_without_weight_is_never_drawn(accumulate: bool) -> None:
    mixture = Mixture([3, 3], [0.0, 1.0], batch_size=6, seed=1, accumulate=accumulate)
    assert {d.data for s in range(20) for d in mixture.step(s)} == {1}
