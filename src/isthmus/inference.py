"""`ask`: a picture and a question in, an answer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from isthmus.batch import Batch
from isthmus.generation.decode import generate, text_of
from isthmus.images import open_picture
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Example
from isthmus.templates import template_named

# A base language model left to itself goes on with the next line of the pattern.
STOPS = ("\n", "Question:")


@dataclass(frozen=True)
class Answer:
    """An answer and what it was made from.

    Attributes:
        text: The answer.
        prompt: The exact prompt, `<image>` where a picture stood.
        prompt_tokens: Tokens of the prompt, visual tokens included.
        new_tokens: Tokens of the answer.
    """

    text: str
    prompt: str
    prompt_tokens: int
    new_tokens: int


def _prepare(
    model: VisionLanguageModel, pictures: Any, question: str, shots: Sequence[Example]
) -> tuple[str, Batch]:
    query = Example(pictures, question)
    render = template_named(model.config.template, model.language.tokenizer)
    prompt = render(shots, query)
    opened = [open_picture(p) for p in prompt.pictures]
    return prompt.text, model.prepare([prompt.text], [opened])


def ask(
    model: VisionLanguageModel,
    pictures: Any,
    question: str = "",
    *,
    shots: Sequence[Example] = (),
    max_new_tokens: int = 32,
    stop: Sequence[str] = STOPS,
    **options: Any,
) -> Answer:
    """Answers a question about one or several pictures.

    Args:
        model: The model.
        pictures: A picture or a sequence of them: a path, bytes, a file or a PIL picture.
            An empty sequence asks the language model alone.
        question: The question; empty for a caption.
        shots: Demonstrations, put before the question.
        max_new_tokens: Most tokens of the answer.
        stop: Strings that end the answer.
        **options: Options of Transformers' `generate`: `num_beams`, `do_sample`, ...

    Returns:
        The answer, with the exact prompt.

    Raises:
        PictureError: If a picture cannot be read.
        PromptError: If a text contains a tag, or a demonstration has no answer.

    Example:
        >>> import isthmus as im
        >>> from PIL import Image
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> im.ask(model, Image.new("RGB", (32, 32)), "What is it?", max_new_tokens=2).prompt
        '<image>Question: What is it? Answer:'
    """
    prompt, batch = _prepare(model, pictures, question, shots)
    ids = generate(model, batch, max_new_tokens=max_new_tokens, stop=stop, **options)[0]
    return Answer(
        text=text_of(model, ids, stop),
        prompt=prompt,
        prompt_tokens=batch.input_ids.shape[1],
        new_tokens=len(ids),
    )


def stream(
    model: VisionLanguageModel,
    pictures: Any,
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
        PictureError: If a picture cannot be read.
        PromptError: If a text contains a tag, or a demonstration has no answer.
    """
    _, batch = _prepare(model, pictures, question, shots)
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
    finally:  # also when the reader has had enough: the pictures must not stay in sight
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
