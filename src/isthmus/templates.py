"""How examples become prompts. Pure: no torch.

`plain` is Flamingo's (Alayrac et al. 2022, appendix C.2; OpenFlamingo, Awadalla et al. 2023,
appendix B), letter by letter:

    <image>Question: What is this? Answer: a dog.<|endofchunk|><image>Question: ... Answer:
    <image>Output: a dog on a sofa.<|endofchunk|><image>Output:

A template is a function from demonstrations and a query to a `Prompt`; one of your own can be
passed wherever a name is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isthmus.errors import ConfigError, PromptError, suggestion
from isthmus.prompt import END_TAG, IMAGE_TAG, Example, Prompt

Template = Callable[[Sequence[Example], Example], Prompt]


def _check(text: str) -> str:
    """Refuses tags in a user's text: a picture there would have nobody to stand for it."""
    for tag in (IMAGE_TAG, END_TAG):
        if tag in text:
            raise PromptError(
                f'"{text[:60]}" has more {IMAGE_TAG} tags than pictures: {tag} is placed by the '
                "template, one for each picture; leave it out of questions and answers"
            )
    return text


def _lead(example: Example) -> str:
    """The part of an example up to its answer."""
    question = _check(example.question)
    lead = f"Question: {question} Answer:" if question else "Output:"
    return IMAGE_TAG * len(example.pictures) + lead


def plain(shots: Sequence[Example], query: Example) -> Prompt:
    """Flamingo's prompt for questions ("Question: ... Answer:") and captions ("Output:").

    Args:
        shots: Demonstrations, each with an answer.
        query: What is asked.

    Raises:
        PromptError: If a demonstration has no answer, or a text contains a tag.

    Example:
        >>> plain([], Example("a.jpg", "What is this?")).text
        '<image>Question: What is this? Answer:'
    """
    pieces: list[str] = []
    for shot in shots:
        if shot.answer is None:
            raise PromptError(f'the demonstration "{shot.question}" has no answer')
        pieces.append(f"{_lead(shot)} {_check(shot.answer)}{END_TAG}")
    pieces.append(_lead(query))
    pictures = tuple(p for e in (*shots, query) for p in e.pictures)
    return Prompt("".join(pieces), pictures)


TEMPLATES: dict[str, Template] = {"plain": plain}


def template_named(name: str) -> Template:
    """The template of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in TEMPLATES:
        raise ConfigError(f'unknown template "{name}": {suggestion(name, TEMPLATES)}')
    return TEMPLATES[name]
