"""The order of shots: by rule, searched by entropy, or many orders averaged.

Letters: n shots, R orders, N queries or probes, K closed answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isthmus.demonstrations.render import Render, frame
from isthmus.demonstrations.retrieve import generator
from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.generation.engine import Engine
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Example, joined

Floats = NDArray[np.float64]
Norm = Literal["sum", "token", "byte"]
OrderName = Literal["similar-last", "similar-first", "random", "label-interleaved"]
Permutation = tuple[int, ...]
ALL_OF = 24
"""Orders that a search tries: all of up to four shots (Lu et al. 2021, section 3)."""


# --- By rule -------------------------------------------------------------------------------------


def arrange(
    shots: Sequence[Example],
    order: OrderName = "similar-last",
    *,
    seed: int = 0,
    key: str = "",
    label: Callable[[Example], Any] = lambda example: example.answer,
) -> list[Example]:
    """Shots in the order in which they will stand in the prompt.

    Args:
        shots: What a selector returned, the best first.
        order: "similar-last", next to the query, as Flamingo's RICES; "similar-first";
            "random"; or "label-interleaved": the most similar last, and before a label comes
            again (from the end) every other label that has shots left has come.
        seed: For "random".
        key: For "random", what else the order depends on, such as the query's id. Without,
            shots of one number are permuted alike.
        label: What a shot's label is; its answer by default.

    Raises:
        ConfigError: If the order is unknown.

    Example:
        >>> [e.answer for e in arrange([Example((), "", a) for a in "AAB"], "label-interleaved")]
        ['A', 'B', 'A']
    """
    if order not in ORDERS:
        raise ConfigError(f'unknown order "{order}": {suggestion(order, ORDERS)}')
    if order == "similar-first":
        return list(shots)
    if order == "similar-last":
        return list(reversed(shots))
    if order == "random":
        return [shots[i] for i in generator(seed, key).permutation(len(shots))]
    ranks: dict[Any, int] = {}  # label -> its shots so far
    rounds = []
    for place, shot in enumerate(shots):
        turn = ranks.get(label(shot), 0)
        ranks[label(shot)] = turn + 1
        rounds.append((turn, list(ranks).index(label(shot)), place))
    return [shots[place] for _, _, place in sorted(rounds, reverse=True)]


ORDERS: tuple[OrderName, ...] = ("similar-last", "similar-first", "random", "label-interleaved")


def permutations(n: int, most: int = ALL_OF, seed: int = 0) -> list[Permutation]:
    """Orders of n shots: all of them up to `most`, else as many different ones, drawn.

    Example:
        >>> permutations(2)
        [(0, 1), (1, 0)]
        >>> len(set(permutations(9, most=6)))
        6
    """
    if most < 1:
        raise ConfigError(f"asked for {most} orders: expected at least 1")
    if math.factorial(min(n, 20)) <= most:
        return list(itertools.permutations(range(n)))
    random = generator(seed, "orders")
    found: dict[Permutation, None] = {}
    while len(found) < most:
        found[tuple(random.permutation(n).tolist())] = None
    return list(found)


# --- Scores under many orders --------------------------------------------------------------------


def score_orders(
    engine: Engine,
    template: Render,
    shots: Sequence[Example],
    queries: Sequence[Example],
    choices: Sequence[str],
    orders: Sequence[Permutation],
    *,
    norm: Norm = "sum",
) -> Floats:
    """Log-probabilities (R, N, K) of closed answers under each order of the same shots.

    Queries of one order come one after the other, so that its prefix is computed once.

    Args:
        engine: Scores.
        template: Renders.
        shots: The shots.
        queries: The queries.
        choices: The answers, each with its leading space, if any.
        orders: Places of the shots: order o puts `shots[o[0]]` first.
        norm: See `ChoiceScores.by`.

    Raises:
        InputError: If there is no order, no query or no answer.

    Example:
        >>> import isthmus as im
        >>> from isthmus.prompts.templates import TEMPLATES
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear()))
        >>> shots = [Example((), "2 + 2?", "4"), Example((), "3 + 3?", "6")]
        >>> scores = score_orders(engine, TEMPLATES["plain"], shots, [Example((), "1 + 1?")],
        ...                       [" 2", " 3", " 4"], permutations(2))
        >>> scores.shape, ensemble(scores).shape
        ((2, 1, 3), (1, 3))
    """
    prompts = [template([shots[i] for i in o], query) for o in orders for query in queries]
    if not prompts or not choices:
        raise InputError(
            f"nothing to score: got {len(orders)} orders, {len(queries)} queries and "
            f"{len(choices)} answers"
        )
    scores = [found.by(norm) for found in engine.score(prompts, choices)]
    return np.array(scores, float).reshape(len(orders), len(queries), len(choices))


def log_softmax(logprobs: Any) -> Floats:
    """Log-probabilities among the last axis' answers alone, which then sum to 1."""
    array = np.asarray(logprobs, float)
    largest = array.max(axis=-1, keepdims=True)
    shifted: Floats = array - largest
    normed: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normed


def ensemble(logprobs: Any, by: Literal["logprob", "probability"] = "logprob") -> Floats:
    """Averages scores over orders of the shots (Flamingo, Alayrac et al. 2022, appendix A).

    Flamingo's is `ensemble(score_orders(..., orders=permutations(len(shots), 6)))`.

    Args:
        logprobs: (R, N, K) log-probabilities, of `score_orders`.
        by: "logprob" averages log-probabilities, as Flamingo does; "probability" averages
            probabilities among the K answers.

    Returns:
        (N, K) scores, the larger the likelier.

    Example:
        >>> ensemble([[[-1.0, -2.0]], [[-3.0, -1.0]]]).tolist()
        [[-2.0, -1.5]]
    """
    array = np.asarray(logprobs, float)
    if array.ndim != 3 or not len(array):
        raise InputError(f"scores of shape {array.shape}: expected (orders, queries, answers)")
    if by == "logprob":
        mean: Floats = array.mean(axis=0)
        return mean
    if by != "probability":
        raise ConfigError(f'unknown average "{by}": {suggestion(by, ("logprob", "probability"))}')
    normed = log_softmax(array)
    pooled: Floats = np.logaddexp.reduce(normed, axis=0) - np.log(len(array))
    return pooled


# --- Searched ------------------------------------------------------------------------------------


def entropy(probabilities: Any) -> Floats:
    """Entropy in nats over the last axis; 0 log 0 is 0.

    Example:
        >>> entropy([[0.5, 0.5], [1.0, 0.0]]).round(4).tolist()
        [0.6931, 0.0]
    """
    p = np.asarray(probabilities, float)
    # p = 1 gives -0.0, which prints badly
    found: Floats = np.abs(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))
    return found


def global_entropy(logprobs: Any) -> Floats:
    """GlobalE (Lu et al. 2021, section 3.2): entropy of the histogram of predicted answers.

    Args:
        logprobs: (..., N, K) scores of N probes.

    Returns:
        (...) nats: 0 where all probes get one answer, ln K where answers are even.
    """
    array = np.asarray(logprobs, float)
    predicted = np.eye(array.shape[-1])[array.argmax(axis=-1)]
    return entropy(predicted.mean(axis=-2))


def local_entropy(logprobs: Any) -> Floats:
    """LocalE (Lu et al. 2021, section 3.2): mean entropy of each probe's answers.

    Args:
        logprobs: (..., N, K) scores of N probes.

    Returns:
        (...) nats: 0 where the model is sure of each.
    """
    found: Floats = entropy(np.exp(log_softmax(logprobs))).mean(axis=-1)
    return found


@dataclass(frozen=True)
class ScoredOrder:
    """An order and what a search found of it.

    Attributes:
        order: Places of the shots: `[shots[i] for i in order]`.
        score: Its entropy, in nats; the larger the better.
    """

    order: Permutation
    score: float


def search_order(
    engine: Engine,
    template: Render,
    shots: Sequence[Example],
    choices: Sequence[str],
    *,
    by: Literal["global", "local"] = "global",
    probes: Sequence[Example] = (),
    most: int = ALL_OF,
    norm: Norm = "sum",
    seed: int = 0,
) -> list[ScoredOrder]:
    """Orders of shots without a bias to some answers (Lu et al. 2021, section 3).

    No labelled example is needed: an order is good if over a set of probes the model's answers
    are not all the same (GlobalE), or not all certain (LocalE). The paper goes on with the best
    four of 24. An order that is good for one model need not be for another.

    Args:
        engine: Scores, and writes the probes.
        template: Renders.
        shots: The shots, which all have answers.
        choices: The closed answers, each with its leading space, if any.
        by: "global" or "local".
        probes: Queries to probe with, such as the ones to be answered; none lets the model write
            them, see `write_probes`.
        most: How many orders: all of them if there are no more, else drawn from the seed.
        norm: How answers' scores are compared, see `ChoiceScores.by`.
        seed: Seed of the orders and of the probes.

    Returns:
        The orders, best first.

    Raises:
        ConfigError: If `by` is unknown.
        InputError: If there is only one answer, or the model writes no probe.

    Example:
        >>> import isthmus as im
        >>> from isthmus.prompts.templates import TEMPLATES
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear()))
        >>> shots = [Example((), "Is 2 even?", "yes"), Example((), "Is 3 even?", "no")]
        >>> best, *_ = search_order(engine, TEMPLATES["plain"], shots, [" yes", " no"],
        ...                         by="local", probes=[Example((), "Is 7 even?")])
        >>> sorted(best.order)
        [0, 1]
    """
    measures = {"global": global_entropy, "local": local_entropy}
    if by not in measures:
        raise ConfigError(f'unknown measure "{by}": {suggestion(by, measures)}')
    if len(choices) < 2:
        raise InputError(f"a search needs two answers or more to choose from, got {len(choices)}")
    orders = permutations(len(shots), most, seed)
    probes = probes or write_probes(engine, template, shots, orders, seed=seed)
    scores = score_orders(engine, template, shots, probes, choices, orders, norm=norm)
    found = zip(orders, measures[by](scores).tolist(), strict=True)
    return sorted((ScoredOrder(o, s) for o, s in found), key=lambda s: -s.score)


def write_probes(
    engine: Engine,
    template: Render,
    shots: Sequence[Example],
    orders: Sequence[Permutation],
    *,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Example]:
    """Questions that the model itself writes after the shots (Lu et al. 2021, section 3.1).

    One for each order of the shots. A language model writes no images: a question about some
    is written to, and then asked about, the images of a shot, each shot in turn.

    Args:
        engine: Generates.
        template: Renders.
        shots: The shots.
        orders: The orders.
        max_new_tokens: Most tokens of a question.
        temperature: Of the sampling.
        seed: Of the sampling.

    Returns:
        Queries, all different.

    Raises:
        InputError: If shots have no questions to go on from, or nothing usable is written.
    """
    if not shots or not all(shot.question for shot in shots):
        raise InputError(
            "the model can only continue shots with questions: pass probes=, some queries"
        )
    found: dict[tuple[str, int], Example] = {}
    for number, order in enumerate(orders):
        about = number % len(shots)
        query = Example(shots[about].images)
        gap = frame(template, [shots[i] for i in order], query)
        written = engine.generate(
            [gap.opened()],
            max_new_tokens=max_new_tokens,
            stop=[s for s in ("\n", joined(gap.after)) if s.strip() or s == "\n"],
            temperature=temperature,
            seed=seed + number,
        )[0].completions[0]
        text = written.text
        if text and IMAGE_TAG not in text and END_TAG not in text:
            found[text, about] = Example(shots[about].images, text)
    if not found:
        raise InputError("the model wrote no question: pass probes=, some queries")
    return list(found.values())
