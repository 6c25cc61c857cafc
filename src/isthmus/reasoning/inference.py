"""`ask`: an image and a question in, an answer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from isthmus.errors import ConfigError
from isthmus.generation.decode import generate, text_of
from isthmus.generation.engine import Engine
from isthmus.media.image import open_image
from isthmus.model.batch import Batch
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.answers import AnswerKind, extract
from isthmus.prompts.prompt import Example, with_choices
from isthmus.prompts.templates import template_named
from isthmus.reasoning.reason import STOPS, Asked, Reasoning, solve, way_for
from isthmus.reasoning.wording import trigger_named


@dataclass(frozen=True)
class Answer:
    """An answer and what it was made from.

    Attributes:
        text: The answer.
        prompt: The exact prompt, `<image>` where an image stood.
        prompt_tokens: Tokens of the prompt, visual tokens included; of all prompts, where there
            were several.
        new_tokens: Tokens of the answer, and of the steps to it.
        rationale: The steps to the answer, where the model was made to take some.
        parsed: What was found in the text, where a kind of answer was asked for; None if it does
            not parse.
        votes: Votes by answer, where several chains were drawn.
        agreement: The winner's share of the votes, a confidence.
        prompts: Every prompt, in their order; the last one is `prompt`.
        cached_tokens: Tokens of prompts that were not computed, since others share them.
        unparsed: Share of chains without an answer that parses; they have no vote.
    """

    text: str
    prompt: str
    prompt_tokens: int
    new_tokens: int
    rationale: str | None = None
    parsed: str | None = None
    votes: dict[str, int] = field(default_factory=dict)
    agreement: float | None = None
    prompts: tuple[str, ...] = ()
    cached_tokens: int = 0
    unparsed: float | None = None


def _prepare(
    model: VisionLanguageModel, images: Any, question: str, shots: Sequence[Example]
) -> tuple[str, Batch]:
    query = Example(images, question)
    render = template_named(model.config.template, model.language.tokenizer)
    prompt = render(shots, query)
    opened = [open_image(p) for p in prompt.images]
    return prompt.text, model.prepare([prompt.spans], [opened])


def ask(
    model: VisionLanguageModel,
    images: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    reason: bool | Reasoning = False,
    kind: AnswerKind = "text",
    choices: Sequence[str] = (),
    max_new_tokens: int | None = None,
    stop: Sequence[str] = STOPS,
    **options: Any,
) -> Answer:
    """Answers a question about one or several images.

    Args:
        model: The model.
        images: An image or a sequence of them: a path, bytes, a file or a PIL image.
            An empty sequence asks the language model alone.
        question: The question; empty for a caption.
        shots: Demonstrations, put before the question.
        reason: Whether to reach the answer in steps: like those of the demonstrations, where one
            has a rationale, else after "Let's think step by step.", in Korean for a Korean
            question. A `Reasoning` says more: the trigger, how many chains vote, ... Where all
            demonstrations begin their steps with the trigger, as Auto-CoT's do, so does the answer.
        kind: What the answer is, so that it can be found in the text.
        choices: The closed answers, of a choice or label.
        max_new_tokens: Most tokens of the answer; None is what a `Reasoning` says, or 32.
        stop: Strings that end the answer; steps have ends of their own.
        **options: Options of Transformers' `generate`: `num_beams`, `do_sample`, ...; not beside
            `reason`.

    Returns:
        The answer, with the exact prompt.

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
    closed = tuple(choices) if kind in ("choice", "label") else ()
    if kind == "choice":
        question = with_choices(question, closed)
    if reason:
        if options:
            raise ConfigError(
                f"{sorted(options)[0]} cannot go with reason: a Reasoning says how chains are drawn"
            )
        how = way_for(question, shots) if reason is True else reason
        if max_new_tokens is not None:
            how = replace(how, max_new_tokens=max_new_tokens)
        return _in_steps(model, Example(images, question), shots, how, kind, closed)
    prompt, batch = _prepare(model, images, question, shots)
    most = 32 if max_new_tokens is None else max_new_tokens
    ids = generate(model, batch, max_new_tokens=most, stop=stop, **options)[0]
    text = text_of(model, ids, stop)
    parsed = extract(text, kind, closed, after=("",))
    return Answer(
        text=text,
        prompt=prompt,
        prompt_tokens=batch.input_ids.shape[1],
        new_tokens=len(ids),
        parsed=parsed,
        prompts=(prompt,),
        unparsed=float(parsed is None),
    )


def _in_steps(
    model: VisionLanguageModel,
    query: Example,
    shots: Sequence[Example],
    reasoning: Reasoning,
    kind: AnswerKind,
    choices: tuple[str, ...],
) -> Answer:
    """The answer that reasoning reaches; its text is what was found in what the model wrote."""
    template = template_named(model.config.template, model.language.tokenizer)
    begun = trigger_named(reasoning.trigger).text
    worked = [s.rationale for s in shots if s.rationale]
    alike = reasoning.way == "cot" and all(r.startswith(begun) for r in worked)
    asked = Asked(template, kind, choices, lead=begun if alike else "")
    [solution] = solve(Engine(model), [query], [shots], reasoning, asked)
    prompts = tuple(p.text for p in solution.prompts)
    return Answer(
        text=solution.text if solution.answer is None else solution.answer,
        prompt=prompts[-1],
        prompt_tokens=solution.prompt_tokens,
        new_tokens=solution.new_tokens,
        rationale=solution.rationale,
        parsed=solution.answer,
        votes=solution.votes,
        agreement=solution.agreement,
        prompts=prompts,
        cached_tokens=solution.cached_tokens,
        unparsed=solution.unparsed,
    )


def stream(
    model: VisionLanguageModel,
    images: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    max_new_tokens: int = 32,
    stop: Sequence[str] = STOPS,
    **options: Any,
) -> Iterator[str]:
    """As `ask`, but yields the answer piece by piece while it is decoded.

    The pieces joined are what `ask` returns as text, but for white space at the ends.

    Raises:
        ImageError: If an image cannot be read.
        PromptError: If a text contains a tag, or a demonstration has no answer.
    """
    _, batch = _prepare(model, images, question, shots)
    pieces = TextIteratorStreamer(
        model.language.tokenizer, skip_prompt=False, skip_special_tokens=True
    )
    failure: list[BaseException] = []
    left = Event()

    def work() -> None:
        try:
            generate(
                model,
                batch,
                max_new_tokens=max_new_tokens,
                stop=stop,
                streamer=pieces,
                stopping_criteria=[_Left(left)],
                **options,
            )
        except BaseException as error:  # handed to the reading side, which raises it
            failure.append(error)
            pieces.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _until_stop(pieces, stop)
    finally:  # also when the reader has had enough: the images must not stay in sight
        left.set()
        thread.join()
    if failure:
        raise failure[0]


class _Left(StoppingCriteria):
    """Ends decoding once the reader of a stream has gone."""

    def __init__(self, left: Event) -> None:
        self.left = left

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.left.is_set(), device=input_ids.device)


def _until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Passes pieces on up to a stop string, holding back what may be the start of one."""
    held = ""
    longest = max((len(s) for s in stop), default=0)
    ended = False
    for piece in pieces:
        if ended:
            continue  # drain, so that the decoding thread can end
        held += piece
        cuts = [held.find(s) for s in stop if s in held]
        if cuts:
            held, ended = held[: min(cuts)], True
            yield held
        elif len(held) >= longest:
            safe = len(held) - longest + 1 if longest else len(held)
            yield held[:safe]
            held = held[safe:]
    if not ended and held:
        yield held
