"""`ask`: an image and a question in, an answer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from isthmus.errors import ConfigError
from isthmus.generation.engine import Engine
from isthmus.media.file_ref import FileRef
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel
from isthmus.prompts.answers import AnswerKind
from isthmus.prompts.prompt import Example, with_choices
from isthmus.prompts.templates import template_named
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.drivers import run, streamed
from isthmus.reasoning.method import Reasoning, reasoning_for
from isthmus.reasoning.question import STOPS, Asked, Question
from isthmus.reasoning.vote import program_for


def ask(
    model: VisionLanguageModel | WholeModel | Engine,
    images: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    reasoning: str | Reasoning | None = None,
    kind: AnswerKind = "text",
    choices: Sequence[str] = (),
    samples: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    max_rationale_tokens: int | None = None,
    stop: Sequence[str] = STOPS,
) -> Answer:
    """Answers a question about one or several images.

    Args:
        model: The model, or an engine around it, which keeps what prompts share from one question
            to the next.
        images: An image or a sequence of them: a path, bytes, a file or a PIL image. An empty
            sequence asks the language model alone.
        question: The question; empty for a caption.
        shots: Demonstrations, shown before the question.
        reasoning: How the answer is reached: None at once; "cot" in steps like those of the
            demonstrations; "zero-cot" after "Let's think step by step.", in Korean for a Korean
            question; "least-to-most" over smaller questions; "auto" is "cot" where a demonstration
            has a rationale and else "zero-cot". A `Reasoning` says more, such as the trigger.
        kind: What the answer is, so that it can be found in the text.
        choices: The closed answers, of a choice or label.
        samples: Chains that are drawn, whose answers vote.
        temperature: Of what is drawn; by default 0, greedy, for one chain and 0.7 for several.
        top_p: Draw from the likeliest tokens that hold this share.
        top_k: Draw from so many of the likeliest tokens; 0 for all.
        seed: Of what is drawn.
        max_new_tokens: Most tokens of the answer; 32 by default.
        max_rationale_tokens: Most tokens of the steps; 256 by default.
        stop: Strings that end an answer at once; steps have ends of their own.

    Each of `samples`, `temperature`, `top_p`, `top_k`, `seed`, `max_new_tokens` and
    `max_rationale_tokens` takes the place of what a `Reasoning` says, where it is given.

    Returns:
        The answer, with the exact prompts.

    Raises:
        ConfigError: If options contradict each other.
        ImageError: If an image cannot be read.
        PromptError: If a text contains a tag, or a demonstration has no answer.

    Example:
        >>> import isthmus as im
        >>> from PIL import Image
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> im.ask(model, Image.new("RGB", (32, 32)), "What is it?", max_new_tokens=2).prompt
        '<image>Question: What is it? Answer:'
    """
    how = reasoning_for(
        reasoning,
        shots,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
        max_rationale_tokens=max_rationale_tokens,
    )
    engine = model if isinstance(model, Engine) else Engine(model)
    made = question_of(
        engine.model, images, question, shots=shots, kind=kind, choices=choices, stop=stop
    )
    [answer] = run(engine, [program_for(made, how)])
    return answer


def stream(
    model: VisionLanguageModel | WholeModel | Engine,
    images: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = STOPS,
) -> Iterator[str]:
    """As `ask` at once, but yields the answer piece by piece while it is written.

    The pieces joined are what `ask` returns as text.

    Raises:
        ImageError: If an image cannot be read.
        PromptError: If a text contains a tag, or a demonstration has no answer.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> pieces = im.stream(model, (), "Why?", max_new_tokens=4)
        >>> "".join(pieces) == im.ask(model, (), "Why?", max_new_tokens=4).text
        True
    """
    how = reasoning_for(
        None,
        shots,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    engine = model if isinstance(model, Engine) else Engine(model)
    made = question_of(engine.model, images, question, shots=shots, stop=stop)
    yield from streamed(engine, program_for(made, how))


def question_of(
    model: VisionLanguageModel | WholeModel,
    images: Any,
    question: str,
    *,
    shots: Sequence[Example] = (),
    kind: AnswerKind = "text",
    choices: Sequence[str] = (),
    stop: Sequence[str] = STOPS,
) -> Question:
    """The question in the model's own template; arguments as for `ask`."""
    tokenizer = model.language.tokenizer
    closed = tuple(choices) if kind in ("choice", "label") else ()
    if kind in ("choice", "label") and not closed:
        raise ConfigError(
            f'kind is "{kind}" and there are no choices: give the answers to choose from, as in '
            'choices=["cat", "dog"]'
        )
    if kind == "choice":
        question = with_choices(question, closed)
    asked = Asked(template_named(model.config.template, tokenizer), kind, closed)
    query = _read_once(Example(images, question))
    return asked.question(
        query,
        [_read_once(shot) for shot in shots],
        stop=tuple(stop),
        markers=tuple(tokenizer.all_special_tokens),
    )


def _read_once(example: Example) -> Example:
    """The example with open files read, which several prompts show and nobody can read twice."""
    opened = [
        p.read() if hasattr(p, "read") and not isinstance(p, FileRef) else p for p in example.images
    ]
    return replace(example, images=opened)
