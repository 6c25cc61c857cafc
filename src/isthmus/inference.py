"""`ask`: a picture and a question in, an answer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isthmus.answers import AnswerKind, extract
from isthmus.errors import ConfigError
from isthmus.generation.engine import Engine
from isthmus.generation.requests import Finished, GenerationRequest
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Example, with_choices
from isthmus.prompting.reason import STOPS, Asked, Reasoning, solve, way_for
from isthmus.templates import template_named
from isthmus.triggers import trigger_named


@dataclass(frozen=True)
class Answer:
    """An answer and what it was made from.

    Attributes:
        text: The answer.
        prompt: The exact prompt, `<image>` where a picture stood.
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


def _request(
    model: VisionLanguageModel,
    pictures: Any,
    question: str,
    shots: Sequence[Example],
    **options: Any,
) -> GenerationRequest:
    render = template_named(model.config.template, model.language.tokenizer)
    return GenerationRequest(prompt=render(shots, Example(pictures, question)), **options)


def ask(
    model: VisionLanguageModel,
    pictures: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    reason: bool | Reasoning = False,
    kind: AnswerKind = "text",
    choices: Sequence[str] = (),
    max_new_tokens: int | None = None,
    stop: Sequence[str] = STOPS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Answer:
    """Answers a question about one or several pictures.

    Args:
        model: The model.
        pictures: A picture or a sequence of them: a path, bytes, a file or a PIL picture.
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
        temperature: 0 takes the likeliest token, always; for drawing, not beside `reason`.
        top_p: Draw from the likeliest tokens that hold this share.
        top_k: Draw from so many of the likeliest tokens; 0 for all.
        seed: Of the drawing: the same seed draws the same text, here, in an `Engine` and on a
            server.

    Returns:
        The answer, with the exact prompt.

    Raises:
        ConfigError: If options contradict each other.
        PictureError: If a picture cannot be read.
        PromptError: If a text contains a tag, a demonstration has no answer, or the model's context
            has no room for the prompt.

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
        if temperature:
            raise ConfigError(
                "temperature cannot go with reason: a Reasoning says how chains are drawn"
            )
        how = way_for(question, shots) if reason is True else reason
        if max_new_tokens is not None:
            how = replace(how, max_new_tokens=max_new_tokens)
        return _in_steps(model, Example(pictures, question), shots, how, kind, closed)
    request = _request(
        model,
        pictures,
        question,
        shots,
        max_new_tokens=32 if max_new_tokens is None else max_new_tokens,
        stop=tuple(stop),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    [made] = Engine(model).run([request])
    text, prompt = made.text, request.prompt.text
    parsed = extract(text, kind, closed, after=("",))
    return Answer(
        text=text,
        prompt=prompt,
        prompt_tokens=made.prompt_tokens,
        new_tokens=made.new_tokens,
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
    pictures: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    max_new_tokens: int = 32,
    stop: Sequence[str] = STOPS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """As `ask`, but yields the answer piece by piece while it is decoded.

    The pieces joined are what `ask` returns as text.

    Raises:
        PictureError: If a picture cannot be read.
        PromptError: If a text contains a tag, a demonstration has no answer, or the model's context
            has no room for the prompt.
    """
    request = _request(
        model,
        pictures,
        question,
        shots,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    told, held = False, ""
    for event in Engine(model).stream(request):
        if isinstance(event, Finished):
            return
        text = held + (event.text if told else event.text.lstrip())
        piece = text.rstrip()  # white space is said once something follows it
        held = text[len(piece) :]
        if piece:
            told = True
            yield piece
