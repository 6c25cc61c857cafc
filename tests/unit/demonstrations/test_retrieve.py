from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isthmus as im
from isthmus.demonstrations.order import arrange
from isthmus.demonstrations.retrieve import (
    Balanced,
    Diverse,
    Fixed,
    ImageThenText,
    Nearest,
    RandomShots,
    Selector,
    rices,
    text_neighbours,
)
from isthmus.demonstrations.route import Routed
from isthmus.demonstrations.support import Support
from isthmus.errors import ConfigError, InputError
from isthmus.prompts.prompt import Example


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def texts(count: int) -> list[Example]:
    return [Example((), f"question {i}", f"{i}") for i in range(count)]


def by_table(table: dict[str, Sequence[float]]) -> Callable[[Sequence[Example]], np.ndarray]:
    """An embedder that looks questions up."""
    return lambda examples: np.array([table[e.question] for e in examples], np.float32)


def names(shots: Sequence[Example]) -> list[str]:
    return [str(shot.answer) for shot in shots]


QUERY = Example((), "question 3")


# --- Without looking at the query ----------------------------------------------------------------


def test_fixed_is_the_first_ones_but_for_the_query() -> None:
    assert names(Fixed(texts(9)).select(QUERY, 4)) == ["0", "1", "2", "4"]


def test_random_depends_on_the_query_and_the_seed_and_not_on_what_was_asked_before() -> None:
    queries = [Example(noise(i), f"{i % 2}") for i in range(6)]
    first, second = RandomShots(texts(50), seed=1), RandomShots(texts(50), seed=1)
    forwards = [names(first.select(q, 5)) for q in queries]
    backwards = [names(second.select(q, 5)) for q in reversed(queries)]
    assert forwards == backwards[::-1]
    assert len({tuple(f) for f in forwards}) == 6
    assert forwards[0] != names(RandomShots(texts(50), seed=2).select(queries[0], 5))


def test_random_is_even() -> None:
    select = RandomShots(texts(10)).select
    drawn = Counter(a for i in range(1000) for a in names(select(Example((), f"{i}"), 3)))
    assert all(abs(drawn[f"{i}"] - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7) for i in range(10))


def test_random_that_is_shared_is_the_same_for_all_but_who_would_meet_themselves() -> None:
    select = RandomShots(texts(20), per_query=False).select
    shared = names(select(Example((), "a"), 6))
    assert names(select(Example((), "b"), 6)) == shared
    caught = names(select(Example((), f"question {shared[2]}"), 6))
    assert caught[:-1] == [a for a in shared if a != shared[2]]
    assert shared[2] not in caught


@pytest.mark.parametrize("k", range(10))
def test_balanced_has_each_class_as_often_as_any(k: int) -> None:
    support = [Example((), f"{i}", "ABC"[i % 3] if i < 30 else "A") for i in range(60)]
    for seed in range(5):
        counts = Counter(names(Balanced(support, seed).select(QUERY, k)))
        assert sum(counts.values()) == k
        assert max(counts[c] for c in "ABC") - min(counts[c] for c in "ABC") <= (k % 3 > 0)


def test_balanced_stays_balanced_when_the_guard_takes_a_shot() -> None:
    support = [Example((), f"{i}", "AB"[i % 2]) for i in range(6)]
    for i in range(6):
        shots = Balanced(support).select(Example((), f"{i}"), 4)
        assert Counter(names(shots)) == {"A": 2, "B": 2}
        assert f"{i}" not in {s.question for s in shots}


def test_balanced_goes_on_when_a_class_is_used_up() -> None:
    support = [Example((), f"{i}", "A" if i else "B") for i in range(5)]
    assert Counter(names(Balanced(support).select(QUERY, 5))) == {"A": 4, "B": 1}
    with pytest.raises(InputError, match="demonstration 1 has no answer"):
        Balanced([*support[:1], Example((), "?")])


# --- Nearest -------------------------------------------------------------------------------------


def test_nearest_is_by_cosine_whatever_the_lengths() -> None:
    table = {"q": [1, 0], "a": [100, 100], "b": [0.1, 0.01], "c": [-5, 0]}
    near = Nearest([Example((), x, x) for x in "abc"], by_table(table))
    assert names(near.select(Example((), "q"), 3)) == ["b", "a", "c"]
    np.testing.assert_allclose(near.similarity(Example((), "q")), [0.5**0.5, 0.995, -1], atol=1e-3)


def test_equals_come_in_the_support_sets_order() -> None:
    near = Nearest(texts(6), lambda examples: np.ones((len(examples), 2), np.float32))
    assert names(near.select(Example((), "q"), 6)) == list("012345")


def test_rices_finds_the_identical_image_and_puts_it_last() -> None:
    support = [Example(noise(i), f"What is {i}?", f"{i}") for i in range(30)]
    near = rices(support, im.load_vision("tiny-vit"))
    for i in (0, 17, 29):
        shots = near.select(Example(noise(i), "Another question?"), 8)
        assert shots[0].answer == arrange(shots, "similar-last")[-1].answer == f"{i}"


def test_rices_does_not_find_the_query_itself() -> None:
    support = [Example(noise(i), "What is it?", f"{i}") for i in range(30)]
    near = rices(support, im.load_vision("tiny-vit"))
    assert "17" not in names(near.select(Example(noise(17), "What is it?"), 29))
    with pytest.raises(InputError, match="asked for 30 shots, and only 29 of the 30"):
        near.select(Example(noise(17), "What is it?"), 30)


def test_rices_opens_again_only_what_may_be_the_query(tmp_path: Path) -> None:
    """Captions all have the same question, so pixels alone tell the query from the rest."""
    for i in range(9):
        noise(i).save(tmp_path / f"{i}.png")
    support = [Example(tmp_path / f"{i}.png", "", f"{i}") for i in range(9)]
    near = rices(support, im.load_vision("tiny-vit"))
    for i in (0, 1, 2, 4, 5, 6, 7, 8):
        (tmp_path / f"{i}.png").write_bytes(b"gone")
    shots = near.select(Example(noise(3)), 8)
    assert sorted(names(shots)) == list("01245678")


def test_rices_ranks_by_distance_in_feature_space(tmp_path: Path) -> None:
    encoder = im.load_vision("tiny-vit")
    support = [Example(noise(i), "", f"{i}") for i in range(12)]
    query = Example(noise(99))
    pixels = [encoder.preprocess(e.images[0])[None] for e in (*support, query)]
    means = [encoder(p)[0].mean(dim=0).numpy() for p in pixels]
    unit = [m / np.linalg.norm(m) for m in means]
    expected = sorted(range(12), key=lambda i: -float(unit[i] @ unit[-1]))
    found = names(rices(support, encoder, tmp_path).select(query, 12))
    assert found == [f"{i}" for i in expected]


def test_rices_in_a_second_run_encodes_the_query_alone(tmp_path: Path) -> None:
    support = [Example(noise(i), "", f"{i}") for i in range(9)]
    counts = []
    for run in range(2):
        encoder = im.load_vision("tiny-vit")
        seen: list[int] = []
        encoder.register_forward_hook(lambda m, a, o, seen=seen: seen.append(len(a[0])))
        near = rices(support, encoder, tmp_path)
        for k in (1, 4, 8):
            near.select(Example(noise(50 + run)), k)
        counts.append(sum(seen))
    assert counts == [10, 1]


def test_text_neighbours_share_words_or_parts_of_them() -> None:
    support = [
        Example((), "What colour is the car?", "colour"),
        Example((), "How many dogs are there?", "count"),
        Example((), "강아지는 몇 마리 있나요?", "수"),
    ]
    near = text_neighbours(support)
    assert names(near.select(Example((), "How many cats are there?"), 1)) == ["count"]
    assert names(near.select(Example((), "Colours of cars"), 1)) == ["colour"]
    assert names(near.select(Example((), "강아지가 있나요?"), 1)) == ["수"]


def test_a_text_encoder_of_the_users_is_taken() -> None:
    near = text_neighbours(texts(10), lambda questions: [[len(q), 1] for q in questions])
    assert len(near.select(Example((), "x"), 2)) == 2


def test_images_choose_the_pool_and_questions_from_it() -> None:
    images = {"q": [1, 0], "a": [1, 0.1], "b": [1, 0.2], "c": [1, 0.3], "d": [0, 1]}
    asked = {"q": [0, 1], "a": [1, 0], "b": [1, 1], "c": [0, 1], "d": [0, 1]}
    support = [Example((), x, x) for x in "dabc"]
    query = Example((), "q")

    def chosen(pool: int, k: int) -> list[str]:
        both = ImageThenText(support, by_table(images), by_table(asked), pool)
        return names(both.select(query, k))

    assert chosen(3, 3) == ["c", "b", "a"]
    assert chosen(2, 2) == ["b", "a"]
    assert chosen(4, 2) == ["c", "d"]
    assert chosen(1, 3) == ["c", "b", "a"]  # a pool is never smaller than what is asked for


def test_equal_questions_leave_the_order_to_images() -> None:
    support = [Example(noise(i), "What?", f"{i}") for i in range(12)]
    encoder = im.load_vision("tiny-vit")
    near = rices(support, encoder)
    both = ImageThenText(support, near.embed, pool=6)
    assert both.select(Example(noise(40), "What?"), 6) == near.select(
        Example(noise(40), "What?"), 6
    )


# --- Diverse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_diverse_shots_leave_out_the_copy_of_the_best(method: str) -> None:
    table = {"q": [1, 0, 0], "a": [0.9, 0.4, 0], "b": [0.9, 0.4, 0], "c": [0.85, -0.5, 0.1]}
    near = Nearest([Example((), x, x) for x in "abc"], by_table(table))
    query = Example((), "q")
    assert names(near.select(query, 2)) == ["a", "b"]
    assert names(Diverse(near, method).select(query, 2)) == ["a", "c"]  # type: ignore[arg-type]


def test_a_pool_bounds_how_far_diversity_may_go() -> None:
    table = {"q": [1, 0], "a": [1, 0.1], "b": [1, 0.11], "c": [0.1, 1]}
    near = Nearest([Example((), x, x) for x in "abc"], by_table(table))
    query = Example((), "q")
    assert names(Diverse(near, balance=0.1).select(query, 2)) == ["a", "c"]
    assert names(Diverse(near, balance=0.1, pool=2).select(query, 2)) == ["a", "b"]
    with pytest.raises(ConfigError, match='unknown method "knn"'):
        Diverse(near, "knn")  # type: ignore[arg-type]


# --- Routed --------------------------------------------------------------------------------------


def routed() -> tuple[Routed, list[Example]]:
    random = np.random.default_rng(0)
    angles = random.uniform(0, 0.2, 40) + np.repeat([0.0, 1.5], 20)
    questions = [f"s{i}" for i in range(20)] + [f"q{i}" for i in range(20)]
    places = dict(zip(questions, angles[np.arange(40) % 20 * 2 + np.arange(40) // 20], strict=True))
    places |= {"new": 0.1}
    near = Nearest(
        [Example((), f"s{i}", f"s{i}") for i in range(20)],
        by_table({q: [np.cos(a), np.sin(a)] for q, a in places.items()}),
    )
    queries = [Example((), f"q{i}") for i in range(19)] + [Example((), "s4")]
    return Routed(near, queries, sets=2), queries


def test_queries_of_one_cluster_share_their_shots() -> None:
    route, queries = routed()
    sets = {
        c: {tuple(names(route.select(q, 5))) for q in own} for c, own in clusters(route, queries)
    }
    assert {c: len(s) for c, s in sets.items()} == {0: 1, 1: 1}
    assert not set(sets[0].pop()) & set(sets[1].pop())
    for query in queries:  # within 0.2 of one angle, and 1.3 and more from the other
        near = {f"s{i}" for i in np.flatnonzero(route.near.similarity(query) > np.cos(0.25))}
        assert set(names(route.select(query, 5))) <= near


def clusters(route: Routed, queries: list[Example]) -> list[tuple[int, list[Example]]]:
    return [
        (c, [q for q, label in zip(queries, route.labels, strict=True) if label == c])
        for c in (0, 1)
    ]


def test_a_shot_that_would_give_one_query_away_is_in_no_set_of_its_cluster() -> None:
    route, queries = routed()
    everything = {a for q in queries for a in names(route.select(q, 10))}
    assert "s4" not in names(route.select(queries[-1], 10))
    own = [q for c, own in clusters(route, queries) if queries[-1] in own for q in own]
    assert len(own) > 3
    assert all("s4" not in names(route.select(q, 10)) for q in own)
    assert len(everything) >= 19


def test_a_new_query_goes_to_the_nearest_centre() -> None:
    route, queries = routed()
    nearest = min(queries, key=lambda q: -float(route.near.similarity(q)[0]))
    assert names(route.select(Example((), "new"), 4)) == names(route.select(nearest, 4))


# --- All of them ---------------------------------------------------------------------------------

SUPPORT = [Example(noise(i), f"question {i}", "AB"[i % 2]) for i in range(24)]


def selectors() -> dict[str, Selector]:
    support = Support(SUPPORT, ids=[f"id-{i}" for i in range(24)])
    near = rices(support, im.load_vision("tiny-vit"))
    queries = [Example(noise(100 + i), f"other {i}") for i in range(6)]
    return {
        "fixed": Fixed(support),
        "random": RandomShots(support),
        "balanced": Balanced(support),
        "rices": near,
        "text": text_neighbours(support),
        "mmices": ImageThenText(support, near.embed),
        "mmr": Diverse(near),
        "dpp": Diverse(near, "dpp"),
        "routed": Routed(near, queries, sets=2),
    }


NAMES = ["fixed", "random", "balanced", "rices", "text", "mmices", "mmr", "dpp", "routed"]


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_keeps_its_promises(name: str) -> None:
    select = selectors()[name].select
    query = Example(noise(5), "Question  5")
    shots = select(query, 23)
    assert len({s.question for s in shots}) == 23
    assert "question 5" not in {s.question for s in shots}
    assert [select(query, k) for k in range(5)] == [shots[:k] for k in range(5)]
    fresh = Example(noise(70), "new")
    assert len(select(fresh, 24)) == 24
    by_id = select(fresh, 23, "id-9")
    assert "question 9" not in {s.question for s in by_id}
    for k in (24, -1):
        with pytest.raises(InputError, match=f"asked for {k} shots"):
            select(query, k)
