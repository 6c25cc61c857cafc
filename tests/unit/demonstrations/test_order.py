from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import isthmus as im
from isthmus.demonstrations.order import (
    arrange,
    ensemble,
    entropy,
    global_entropy,
    local_entropy,
    log_softmax,
    permutations,
    score_orders,
    search_order,
    write_probes,
)
from isthmus.errors import ConfigError, InputError
from isthmus.generation.engine import Engine
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import TEMPLATES

PLAIN = TEMPLATES["plain"]
CHOICES = (" a", " bc", " d")


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())


@pytest.fixture(scope="module")
def engine(model: VisionLanguageModel) -> Engine:
    return Engine(model)


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shots(answers: str) -> list[Example]:
    return [Example((), f"{i}", answer) for i, answer in enumerate(answers)]


def answers(found: list[Example]) -> str:
    return "".join(str(e.answer) for e in found)


def logprob(model: VisionLanguageModel, prompt: Prompt, answer: str) -> float:
    """An answer's log-probability, by one plain forward pass over the whole text."""
    batch = model.prepare([prompt.text + answer], [prompt.images])
    start = model.prepare([prompt.text], [prompt.images]).input_ids.shape[1]
    with torch.no_grad():
        logits = model(batch).logits[0, start - 1 : -1]
    return -float(F.cross_entropy(logits, batch.input_ids[0, start:], reduction="sum"))


# --- By rule -------------------------------------------------------------------------------------


def test_rules() -> None:
    best_first = shots("abcd")
    assert answers(arrange(best_first)) == "dcba"
    assert answers(arrange(best_first, "similar-last")) == "dcba"
    assert answers(arrange(best_first, "similar-first")) == "abcd"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("AAB", "ABA"), ("AABB", "BABA"), ("ABBB", "BBBA"), ("AAABC", "AACBA"), ("", ""), ("A", "A")],
)
def test_labels_interleave_from_the_end(given: str, expected: str) -> None:
    assert answers(arrange(shots(given), "label-interleaved")) == expected


@pytest.mark.parametrize("seed", range(20))
def test_interleaved_rounds_have_each_label_that_is_left(seed: int) -> None:
    given = "".join(np.random.default_rng(seed).choice(list("ABC"), 9))
    found = arrange(shots(given), "label-interleaved")
    assert sorted(found, key=str) == sorted(shots(given), key=str)
    assert found[-1] == shots(given)[0]
    backwards, left = answers(found)[::-1], Counter(given)
    while left:
        turn = backwards[: len(left)]
        assert sorted(turn) == sorted(left)
        backwards = backwards[len(left) :]
        left = left - Counter(turn)
    for label in "ABC":  # within a label the more similar is nearer to the query
        places = [int(e.question) for e in found if e.answer == label]
        assert places == sorted(places, reverse=True)


def test_random_order_is_the_seeds_and_the_keys() -> None:
    given = shots("abcdefgh")
    first = arrange(given, "random", seed=1, key="x")
    assert first == arrange(given, "random", seed=1, key="x")
    assert first != arrange(given, "random", seed=2, key="x") != first
    assert first != arrange(given, "random", seed=1, key="y")
    assert sorted(answers(first)) == list("abcdefgh")


def test_interleaving_takes_a_label_of_the_users() -> None:
    found = arrange(shots("abcd"), "label-interleaved", label=lambda e: e.answer in "ab")
    assert answers(found) == "dbca"


def test_an_unknown_order_is_an_error() -> None:
    with pytest.raises(ConfigError, match='did you mean "similar-last"'):
        arrange([], "similar-lst")  # type: ignore[arg-type]


@pytest.mark.parametrize("n", range(5))
def test_up_to_four_shots_have_all_their_orders(n: int) -> None:
    assert permutations(n) == list(itertools.permutations(range(n)))


def test_more_shots_have_as_many_different_orders_as_wanted() -> None:
    found = permutations(5, 119, seed=3)
    assert len(set(found)) == 119
    assert all(sorted(o) == list(range(5)) for o in found)
    assert found == permutations(5, 119, seed=3) != permutations(5, 119, seed=4)
    assert len(permutations(32, 6)) == 6


# --- Entropies -----------------------------------------------------------------------------------


def test_global_entropy_is_of_the_histogram_of_predictions() -> None:
    even = np.log([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]])
    assert global_entropy(even) == pytest.approx(math.log(2))
    assert global_entropy(even[:2]) == 0
    third = -(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3)
    assert global_entropy(even[:3]) == pytest.approx(third)
    np.testing.assert_allclose(global_entropy(np.stack([even, even * 0])), [math.log(2), 0])


def test_local_entropy_is_the_mean_over_probes() -> None:
    def of(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    # Not normalised: what an engine scores are parts of a larger vocabulary
    scores = np.log([[0.09, 0.01], [0.3, 0.3]])
    assert local_entropy(scores) == pytest.approx((of(0.9) + of(0.5)) / 2)


def test_entropy_of_certainty_is_zero() -> None:
    assert entropy([0.0, 1.0, 0.0]) == 0.0
    assert entropy([0.25] * 4) == pytest.approx(math.log(4))


# --- Ensembles -----------------------------------------------------------------------------------


def test_ensembles_equal_their_formulas() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 5, 4)) * 5
    np.testing.assert_allclose(ensemble(scores), sum(scores) / 6)
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ensemble(scores, "probability"), np.log(p.mean(axis=0)))


def test_the_two_averages_differ_where_one_order_is_sure() -> None:
    scores = np.log([[[0.999, 0.001]], [[0.1, 0.9]], [[0.1, 0.9]]])
    assert ensemble(scores, "logprob").argmax() == 0
    assert ensemble(scores, "probability").argmax() == 1


def test_log_softmax_survives_long_answers() -> None:
    found = log_softmax([[-5000.0, -5001.0]])
    np.testing.assert_allclose(found, np.log([[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]]))


def test_wrong_ensembles_are_errors() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 2\)"):
        ensemble([[0, 0], [0, 0]])
    with pytest.raises(ConfigError, match='unknown average "mean"'):
        ensemble([[[0.0]]], "mean")  # type: ignore[arg-type]


def test_scores_under_orders_are_those_of_each_prompt(
    model: VisionLanguageModel, engine: Engine
) -> None:
    given = [Example(noise(i), f"{i}?", a) for i, a in enumerate("ab")]
    queries = [Example(noise(9), "9?"), Example((), "x?")]
    found = score_orders(engine, PLAIN, given, queries, CHOICES, [(1, 0), (0, 1)])
    assert found.shape == (2, 2, 3)
    for r, order in enumerate(((1, 0), (0, 1))):
        for n, query in enumerate(queries):
            prompt = PLAIN([given[i] for i in order], query)
            expected = [logprob(model, prompt, choice) for choice in CHOICES]
            np.testing.assert_allclose(found[r, n], expected, atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    with pytest.raises(InputError, match="1 orders, 0 queries and 3 answers"):
        score_orders(engine, PLAIN, given, [], CHOICES, [(0, 1)])


# --- Search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["global", "local"])
def test_the_search_equals_brute_force(model: VisionLanguageModel, engine: Engine, by: str) -> None:
    given = [Example((), f"{x} is?", y) for x, y in zip("pqr", "ada", strict=True)]
    probes = [Example((), f"probe {i}?") for i in range(5)]
    expected = {}
    for order in itertools.permutations(range(3)):
        labels, entropies = [], []
        for probe in probes:
            prompt = PLAIN([given[i] for i in order], probe)
            scores = np.array([logprob(model, prompt, choice) for choice in CHOICES])
            p = np.exp(scores) / np.exp(scores).sum()
            labels.append(int(p.argmax()))
            entropies.append(-float((p * np.log(p)).sum()))
        shares = [n / 5 for n in Counter(labels).values()]
        whole = -sum(s * math.log(s) for s in shares)
        expected[order] = whole if by == "global" else sum(entropies) / 5
    found = search_order(engine, PLAIN, given, CHOICES, by=by, probes=probes)  # type: ignore[arg-type]
    assert {f.order: pytest.approx(f.score, abs=1e-4) for f in found} == expected
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    if by == "local":
        assert found[0].order == max(expected, key=lambda o: expected[o])


def test_the_model_writes_its_own_probes(engine: Engine) -> None:
    given = [Example(noise(i), f"what is {i}?", f"{i}") for i in range(3)]
    orders = permutations(3)
    probes = write_probes(engine, PLAIN, given, orders, max_new_tokens=12)
    assert probes == write_probes(engine, PLAIN, given, orders, max_new_tokens=12)
    assert 1 <= len(probes) <= 6
    for probe in probes:
        assert probe.question
        assert probe.answer is None
        assert "\n" not in probe.question
        assert "Answer:" not in probe.question
        assert any(probe.images == shot.images for shot in given)
    assert len({id(probe.images[0]) for probe in probes}) == 3
    found = search_order(engine, PLAIN, given, CHOICES)
    assert sorted(f.order for f in found) == orders


def test_a_probe_ends_with_its_line(engine: Engine) -> None:
    def likes_line_breaks(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., ord("\n")] += 5
        return logits

    given = [Example((), f"what is {i}?", f"{i}") for i in range(3)]
    head = engine.model.language.output_embedding
    handle = head.register_forward_hook(likes_line_breaks)
    try:
        probes = write_probes(engine, PLAIN, given, permutations(3))
    finally:
        handle.remove()
    assert probes
    assert all("\n" not in probe.question for probe in probes)


def test_a_probe_is_what_the_model_writes_after_the_opened_prompt(engine: Engine) -> None:
    given = [Example(noise(i), f"what is {i}?", f"{i}") for i in range(2)]
    probes = write_probes(
        engine, PLAIN, given, [(1, 0)], max_new_tokens=12, temperature=0.0, seed=3
    )
    text = (
        "<image>Question: what is 1? Answer: 1<|endofchunk|>"
        "<image>Question: what is 0? Answer: 0<|endofchunk|><image>Question:"
    )
    prompt = Prompt(text, (noise(1), noise(0), noise(0)))
    written = engine.generate([prompt], max_new_tokens=12, stop=["\n", " Answer:"], seed=3)
    assert [p.question for p in probes] == [written[0].completions[0].text]


def test_searches_that_cannot_be_made_say_so(engine: Engine) -> None:
    captions = [Example(noise(i), "", f"{i}") for i in range(2)]
    with pytest.raises(InputError, match="pass probes="):
        search_order(engine, PLAIN, captions, CHOICES)
    with pytest.raises(InputError, match="two answers or more"):
        search_order(engine, PLAIN, captions, CHOICES[:1])
    with pytest.raises(ConfigError, match='unknown measure "globl"'):
        search_order(engine, PLAIN, captions, CHOICES, by="globl")  # type: ignore[arg-type]
