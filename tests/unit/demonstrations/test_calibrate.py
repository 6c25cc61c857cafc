from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.demonstrations.calibrate import (
    batch,
    calibrated,
    content_free_prompts,
    contextual,
    unconditional,
)
from isthmus.demonstrations.render import frame
from isthmus.errors import ConfigError, InputError, PromptError
from isthmus.generation.engine import Engine
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example, Prompt
from isthmus.prompts.templates import TEMPLATES

PLAIN = TEMPLATES["plain"]
CHOICES = ("a", "b", "c")


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    return Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SHOTS = [Example(noise(i), f"what is {i}?", a) for i, a in enumerate("aab")]
QUERIES = [Example(noise(10 + i), f"what is it, {i}?") for i in range(6)]


# --- On arrays -----------------------------------------------------------------------------------


def random_scores(seed: int, rows: int) -> np.ndarray:
    """Log-probabilities of 4 of 10 words, so that they do not sum to 1."""
    logits = np.random.default_rng(seed).normal(size=(rows, 10)) * 2
    return np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[:, :4]


@pytest.mark.parametrize("form", ["diagonal", "identity"])
def test_contextual_equals_the_papers_formula(form: str) -> None:
    """Zhao et al. 2021, section 5, with matrices: q = W p + b."""
    queries, free = random_scores(0, 7), random_scores(1, 3)
    p_cf = np.exp(free).mean(axis=0)
    p_cf = p_cf / p_cf.sum()
    w = np.linalg.inv(np.diag(p_cf)) if form == "diagonal" else np.eye(4)
    b = np.zeros(4) if form == "diagonal" else -p_cf
    found = contextual(queries, free, form)  # type: ignore[arg-type]
    for row, scores in zip(found, queries, strict=True):
        p = np.exp(scores) / np.exp(scores).sum()
        q = w @ p + b
        np.testing.assert_allclose(row, q / q.sum() if form == "diagonal" else q, atol=1e-12)


def test_a_content_free_input_comes_out_even() -> None:
    free = random_scores(1, 1)
    np.testing.assert_allclose(contextual(free, free), 0.25)
    np.testing.assert_allclose(contextual(free, free, "identity"), 0, atol=1e-15)


def test_unconditional_equals_the_papers_formula() -> None:
    queries, premise = random_scores(0, 7), random_scores(1, 1)[0]
    expected = np.log(np.exp(queries) / np.exp(premise))
    np.testing.assert_allclose(unconditional(queries, premise), expected)
    own = random_scores(2, 7)
    np.testing.assert_allclose(unconditional(queries, own), queries - own)


def test_batch_equals_the_papers_formula() -> None:
    queries = random_scores(0, 7)
    p = np.exp(queries) / np.exp(queries).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(batch(queries), np.log(p) - np.log(p).mean(axis=0))
    expected = np.log(p / p.mean(axis=0))
    np.testing.assert_allclose(batch(queries, "probability"), expected)


def test_a_known_bias_is_taken_away_by_each_method() -> None:
    """What the image says is right; a preference for the first answer, e^2, drowns it."""
    said = np.log([[0.7, 0.3], [0.3, 0.7], [0.4, 0.6], [0.6, 0.4]])
    truth = [0, 1, 1, 0]
    bias = np.array([2.0, 0.0])
    scores = said + bias
    assert scores.argmax(axis=1).tolist() == [0, 0, 0, 0]
    nothing = np.log([[0.5, 0.5]] * 3) + bias
    for found in (
        contextual(scores, nothing),
        unconditional(scores, nothing[0]),
        batch(scores),
        batch(scores, "probability"),
    ):
        assert found.argmax(axis=1).tolist() == truth
    # W = 1 shifts probabilities: 0.83 where 0.4 was said, and 0.88 is what nothing has
    assert contextual(scores, nothing, "identity").argmax(axis=1).tolist() == truth


def test_very_unlikely_answers_stay_finite() -> None:
    found = contextual([[-2000.0, -2001.0]], [[-900.0, -1700.0]])
    assert found.tolist() == [[0.0, 1.0]]
    assert np.isfinite(batch([[-2000.0, -1.0], [-1.0, -2000.0]], "probability")).all()


def test_wrong_arrays_are_errors() -> None:
    with pytest.raises(InputError, match="2 answers were scored after the queries and 3"):
        contextual([[0, 0]], [[0, 0, 0]])
    with pytest.raises(InputError, match="2 answers were scored after the queries and 3"):
        unconditional([[0, 0]], [0, 0, 0])
    with pytest.raises(InputError, match="3 queries came with 2 premises"):
        unconditional([[0, 0]] * 3, [[0, 0]] * 2)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        batch([0, 0])
    with pytest.raises(ConfigError, match='unknown form "diag"'):
        contextual([[0, 0]], [[0, 0]], "diag")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='unknown mean "p"'):
        batch([[0, 0]], "p")  # type: ignore[arg-type]


# --- Prompts -------------------------------------------------------------------------------------

DEMOS = "<image>Question: what is 0? Answer: a<|endofchunk|>"


def test_content_free_prompts_keep_the_template_around_each_text() -> None:
    prompts = content_free_prompts(PLAIN, SHOTS[:1], QUERIES[0])
    assert [p.text for p in prompts] == [
        f"{DEMOS}<image>Question: N/A Answer:",
        f"{DEMOS}<image>Question:  Answer:",
        f"{DEMOS}<image>Question: [MASK] Answer:",
    ]
    for prompt in prompts:
        assert prompt.images[0] is SHOTS[0].images[0]
        assert (np.asarray(prompt.images[1]) == 128).all()


def test_content_free_prompts_may_have_no_image() -> None:
    (prompt,) = content_free_prompts(PLAIN, SHOTS[:1], QUERIES[0], texts=["N/A"], image="none")
    assert prompt.text == f"{DEMOS}Question: N/A Answer:"
    assert prompt.images == SHOTS[0].images


def test_a_caption_has_only_its_image_to_lose() -> None:
    shot, query = Example(noise(0), "", "a cat"), Example([noise(1), noise(2)])
    (grey,) = content_free_prompts(PLAIN, [shot], query)
    assert grey.text == "<image>Output: a cat<|endofchunk|><image><image>Output:"
    (bare,) = content_free_prompts(PLAIN, [shot], query, image="none")
    assert bare.text == "<image>Output: a cat<|endofchunk|>Output:"


def test_a_template_that_hides_the_question_is_an_error() -> None:
    with pytest.raises(PromptError, match="shows the query's question 0 times"):
        frame(lambda shots, query: Prompt("?"), [], QUERIES[0])


# --- With an engine ------------------------------------------------------------------------------


def by_hand(engine: Engine, method: str, scores: np.ndarray) -> np.ndarray:
    """Each method with prompts written out."""
    texts = "".join(
        f"<image>Question: {s.question} Answer: {s.answer}<|endofchunk|>" for s in SHOTS
    )
    images = [p for s in SHOTS for p in s.images] + [Image.new("RGB", (224, 224), (128,) * 3)]
    free = [
        Prompt(f"{texts}<image>Question: {text} Answer:", tuple(images))
        for text in ("N/A", "", "[MASK]")
    ]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    if method == "contextual":
        p_cf = np.mean([np.exp(s.logprobs) for s in engine.score(free, CHOICES)], axis=0)
        q = p / (p_cf / p_cf.sum())
        return q / q.sum(axis=1, keepdims=True)
    if method == "unconditional":
        return scores - np.array(engine.score([Prompt("Answer:")], CHOICES)[0].logprobs)
    return np.log(p) - np.log(p).mean(axis=0)


@pytest.mark.parametrize("method", ["contextual", "unconditional", "batch"])
def test_what_is_asked_of_the_engine_is_what_the_paper_says(engine: Engine, method: str) -> None:
    scores = engine.score([PLAIN(SHOTS, q) for q in QUERIES], CHOICES)
    found = calibrated(
        scores,
        method,
        engine,
        CHOICES,
        template=PLAIN,
        shots=SHOTS,
        like=QUERIES[0],  # type: ignore[arg-type]
    )
    expected = by_hand(engine, method, np.array([s.logprobs for s in scores]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@contextmanager
def prefers(model: VisionLanguageModel, byte: str, by: float) -> Iterator[None]:
    """While it lasts, the head adds to the logit of one byte."""

    def add(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., ord(byte)] += by
        return logits

    handle = model.language.output_embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["none", "contextual", "unconditional", "batch"])
def test_a_bias_in_the_models_head_changes_only_uncalibrated_answers(
    engine: Engine, method: str
) -> None:
    def scores() -> np.ndarray:
        raw = engine.score([PLAIN(SHOTS, q) for q in QUERIES], CHOICES)
        return calibrated(
            raw,
            method,
            engine,
            CHOICES,
            template=PLAIN,
            shots=SHOTS,
            like=QUERIES[0],
            texts=["N/A"],  # type: ignore[arg-type]
        )

    def between(array: np.ndarray) -> np.ndarray:
        """What decides: each answer against the mean of all."""
        return array - array.mean(axis=1, keepdims=True)

    plain = scores()
    with prefers(engine.model, "c", 20.0):
        biased = scores()
    if method == "none":
        assert plain.argmax(axis=1).tolist() != [2] * 6
        assert biased.argmax(axis=1).tolist() == [2] * 6
    else:
        np.testing.assert_allclose(between(biased), between(plain), atol=1e-3)
        assert (biased.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_what_a_method_lacks_is_said(engine: Engine) -> None:
    scores = engine.score([PLAIN([], Example((), "x"))], CHOICES)
    with pytest.raises(ConfigError, match="template= and like="):
        calibrated(scores, "contextual", engine, CHOICES)
    with pytest.raises(ConfigError, match='did you mean "batch"'):
        calibrated(scores, "bach", engine, CHOICES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scores of shape"):
        calibrated([], "batch", engine, CHOICES)
    with pytest.raises(ConfigError, match='unknown image "black"'):
        content_free_prompts(PLAIN, [], QUERIES[0], image="black")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one content-free text"):
        content_free_prompts(PLAIN, [], QUERIES[0], texts=())
