"""Calibration of closed answers' scores: contextual, unconditional (PMI), batch.

A model prefers some answers whatever is asked: the majority of its shots, the last of them, common
words (Zhao et al. 2021, section 4). Each method estimates that preference and takes it away.

Letters: N queries, K answers, M content-free inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isthmus.demonstrations.order import Norm, log_softmax
from isthmus.demonstrations.render import Render, frame
from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.generation.engine import ChoiceScores, Engine
from isthmus.prompts.prompt import Example, Prompt

Floats = NDArray[np.float64]
Method = Literal["none", "contextual", "unconditional", "batch"]
METHODS: tuple[Method, ...] = ("none", "contextual", "unconditional", "batch")
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Content-free inputs (Zhao et al. 2021, section 5)."""
GREY = (128, 128, 128)


def _scores(logprobs: Any, name: str) -> Floats:
    array = np.asarray(logprobs, float)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} of shape {array.shape}: expected (rows, answers), not empty")
    return array


def _same_answers(logprobs: Floats, other: Floats) -> None:
    if logprobs.shape[-1] != other.shape[-1]:
        raise InputError(
            f"{logprobs.shape[-1]} answers were scored after the queries and "
            f"{other.shape[-1]} without them: expected the same ones"
        )


# --- On arrays -----------------------------------------------------------------------------------


def contextual(
    logprobs: Any, content_free: Any, form: Literal["diagonal", "identity"] = "diagonal"
) -> Floats:
    """Contextual calibration (Zhao et al. 2021, section 5): q = W p + b.

    p are a query's probabilities among the answers, p_cf the mean of the content-free inputs'
    probabilities, normalised after the mean as in the authors' code.

    Args:
        logprobs: (N, K) log-probabilities after the queries.
        content_free: (M, K) the same after content-free inputs, behind the same shots.
        form: "diagonal" has W = diag(p_cf)^-1 and b = 0; "identity" has W = 1 and b = -p_cf,
            which the paper takes for open generation.

    Returns:
        (N, K) scores q, the larger the likelier; under "diagonal" divided by their sum, which
        leaves their order and keeps them finite.

    Raises:
        ConfigError: If the form is unknown.
        InputError: If shapes do not fit.

    Example:
        >>> import numpy as np
        >>> contextual(np.log([[0.6, 0.4]]), np.log([[0.8, 0.2]])).round(3).tolist()
        [[0.273, 0.727]]
    """
    scores, free = _scores(logprobs, "scores"), _scores(content_free, "content-free scores")
    _same_answers(scores, free)
    # The log of the mean probability; what K answers miss of 1 is divided away at the end
    prior = log_softmax(np.logaddexp.reduce(free, axis=0))
    if form == "diagonal":
        return np.exp(log_softmax(scores - prior))
    if form != "identity":
        raise ConfigError(f'unknown form "{form}": {suggestion(form, ("diagonal", "identity"))}')
    return np.exp(log_softmax(scores)) - np.exp(prior)


def unconditional(logprobs: Any, premise: Any) -> Floats:
    """Domain-conditional PMI (Holtzman et al. 2021): log p(y | x) - log p(y | premise).

    What counts is how much more likely the query makes an answer than the bare premise does, so
    that common and short answers have no head start.

    Args:
        logprobs: (N, K) log-probabilities after the queries.
        premise: (K,) or (N, K) the same after the domain premise alone.

    Returns:
        (N, K) scores, the larger the likelier.

    Raises:
        InputError: If shapes do not fit.

    Example:
        >>> unconditional([[-2.0, -3.0]], [-1.0, -4.0]).tolist()
        [[-1.0, 1.0]]
    """
    scores = _scores(logprobs, "scores")
    prior = np.asarray(premise, float)
    _same_answers(scores, prior if prior.ndim else prior[None])
    if prior.ndim == 2 and len(prior) not in (1, len(scores)):
        raise InputError(f"{len(scores)} queries came with {len(prior)} premises: expected as many")
    found: Floats = scores - prior
    return found


def batch(logprobs: Any, mean: Literal["logprob", "probability"] = "logprob") -> Floats:
    """Batch calibration (Zhou et al. 2023): less the batch's mean for each answer.

    It needs no further prompt, but a batch in which answers are about even: a batch of one
    comes out without any preference.

    Args:
        logprobs: (N, K) log-probabilities after the queries.
        mean: What the preference is estimated by: the mean of the log-probabilities among the
            answers, or the log of their mean probability.

    Returns:
        (N, K) scores, the larger the likelier.

    Raises:
        ConfigError: If the mean is unknown.

    Example:
        >>> batch([[-1.0, -2.0], [-1.0, -4.0]]).argmax(axis=1).tolist()
        [1, 0]
    """
    normed = log_softmax(_scores(logprobs, "scores"))
    if mean == "logprob":
        return normed - normed.mean(axis=0)
    if mean != "probability":
        raise ConfigError(f'unknown mean "{mean}": {suggestion(mean, ("logprob", "probability"))}')
    return normed - (np.logaddexp.reduce(normed, axis=0) - np.log(len(normed)))


# --- What they need of a model -------------------------------------------------------------------


def content_free_prompts(
    template: Render,
    shots: Sequence[Example],
    like: Example,
    *,
    texts: Sequence[str] = CONTENT_FREE,
    image: Literal["grey", "none"] = "grey",
) -> list[Prompt]:
    """Prompts that ask nothing, behind the same shots.

    The texts stand where the question would, and the rest of the template stays as it is, also
    around an empty one. A query without a question (a caption) has only its image to lose, and
    one prompt comes out.

    Args:
        template: Renders.
        shots: The shots.
        like: A query: it says how many images there are, and whether there is a question.
        texts: The content-free inputs.
        image: "grey" puts an even grey in the place of each of the query's images, "none"
            leaves them out.

    Raises:
        ConfigError: If there is no text, or the image is unknown.

    Example:
        >>> from isthmus.prompts.templates import TEMPLATES
        >>> prompts = content_free_prompts(TEMPLATES["plain"], [], Example((), "2 + 2?"))
        >>> [prompt.text for prompt in prompts]
        ['Question: N/A Answer:', 'Question:  Answer:', 'Question: [MASK] Answer:']
    """
    if image not in ("grey", "none"):
        raise ConfigError(f'unknown image "{image}": {suggestion(image, ("grey", "none"))}')
    grey = Image.new("RGB", (224, 224), GREY)
    blank = replace(like, images=[grey] * len(like.images) if image == "grey" else [])
    if not like.question:
        return [template(shots, blank)]
    if not texts:
        raise ConfigError("contextual calibration needs at least one content-free text")
    gap = frame(template, shots, blank)
    return [gap.filled(text) for text in texts]


def calibrated(
    scores: Sequence[ChoiceScores],
    method: Method,
    engine: Engine,
    choices: Sequence[str],
    *,
    template: Render | None = None,
    shots: Sequence[Example] = (),
    like: Example | None = None,
    form: Literal["diagonal", "identity"] = "diagonal",
    texts: Sequence[str] = CONTENT_FREE,
    image: Literal["grey", "none"] = "grey",
    premise: str = "Answer:",
    norm: Norm = "sum",
) -> Floats:
    """Calibrated scores of closed answers, asking the engine for what the method needs.

    Args:
        scores: What the engine scored for N queries, with the same answers and, for "contextual",
            the same shots.
        method: "none", "contextual", "unconditional" or "batch".
        engine: The engine that scored.
        choices: The K answers, as they were scored.
        template: For "contextual", what rendered the queries.
        shots: For "contextual", the queries' shots, in their order.
        like: For "contextual", one of the queries.
        form: For "contextual", see there.
        texts: For "contextual", the content-free inputs.
        image: For "contextual", what stands in the place of the query's images.
        premise: For "unconditional", the domain premise: what stands before the answer when
            nothing is known but the kind of text.
        norm: See `ChoiceScores.by`.

    Returns:
        (N, K) scores, the larger the likelier.

    Raises:
        ConfigError: If the method is unknown, or what it needs is missing.
        InputError: If there are no scores, or not of these answers.

    Example:
        >>> import isthmus as im
        >>> from isthmus.prompts.templates import TEMPLATES
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear()))
        >>> plain, query = TEMPLATES["plain"], Example((), "Is it so?")
        >>> scores = engine.score([plain([], query)], [" yes", " no"])
        >>> calibrated(scores, "contextual", engine, [" yes", " no"], template=plain,
        ...            like=query).shape
        (1, 2)
    """
    if method not in METHODS:
        raise ConfigError(f'unknown calibration "{method}": {suggestion(method, METHODS)}')
    raw = _scores([found.by(norm) for found in scores], "scores")
    if method == "none":
        return raw
    if method == "batch":
        return batch(raw)
    if method == "unconditional":
        return unconditional(raw, engine.score([Prompt(premise)], choices)[0].by(norm))
    if template is None or like is None:
        raise ConfigError("contextual calibration needs template= and like=, one of the queries")
    prompts = content_free_prompts(template, shots, like, texts=texts, image=image)
    return contextual(raw, [found.by(norm) for found in engine.score(prompts, choices)], form)
