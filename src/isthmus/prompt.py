"""Examples and prompts as data. Pure: no torch.

An `Example` is a picture (or several, or none), a question and, when it is a demonstration, its
answer. A `Prompt` is what a template makes of examples: one text in which `<image>` stands once
for each picture, and the pictures in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.errors import PromptError

IMAGE_TAG = "<image>"
END_TAG = "<|endofchunk|>"


@dataclass(frozen=True)
class Example:
    """A question about pictures, with its answer when it is a demonstration.

    Attributes:
        pictures: A picture or a sequence of pictures, in any form that `open_picture` takes.
        question: What is asked; empty for a caption.
        answer: What is right; None for the question to be answered.
        rationale: The steps that lead to the answer, for chain-of-thought prompts.

    Example:
        >>> Example("cats.jpg", "How many cats?", "2").pictures
        ('cats.jpg',)
    """

    pictures: Any = ()
    question: str = ""
    answer: str | None = None
    rationale: str | None = None

    def __post_init__(self) -> None:
        several = isinstance(self.pictures, Sequence) and not isinstance(
            self.pictures, (str, bytes)
        )
        object.__setattr__(self, "pictures", tuple(self.pictures) if several else (self.pictures,))


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: The text, with one `<image>` for each picture.
        pictures: The pictures, in the order of their tags.
        shared: How many characters at the beginning other prompts share: instruction and
            demonstrations, which an engine computes once.

    Raises:
        PromptError: If tags and pictures do not match, or more is shared than there is.
    """

    text: str
    pictures: tuple[Any, ...] = ()
    shared: int = 0

    def __post_init__(self) -> None:
        tags = self.text.count(IMAGE_TAG)
        if tags != len(self.pictures):
            raise PromptError(
                f"the prompt has {tags} {IMAGE_TAG} tags and {len(self.pictures)} pictures; "
                "expected one tag for each picture"
            )
        if not 0 <= self.shared <= len(self.text):
            raise PromptError(
                f"got a shared beginning of {self.shared} characters, expected 0 to "
                f"{len(self.text)}, the length of the prompt"
            )


def without_tags(text: str, also: Sequence[str] = ()) -> str:
    """A text that a model wrote, fit to be put into a prompt: tags it spelled out are dropped.

    Args:
        text: The text.
        also: Other strings that no text may have, such as markers between turns of a chat.

    Example:
        >>> without_tags("a dog<|endofchunk|>")
        'a dog'
    """
    tags = [tag for tag in (IMAGE_TAG, END_TAG, *also) if tag]
    while any(tag in text for tag in tags):  # what is left may come together to a tag
        for tag in tags:
            text = text.replace(tag, "")
    return text


def without_pictures(example: Example) -> Example:
    """The example as text alone.

    Flamingo's "0-shot" is two such demonstrations before the query, which show the form of an
    answer and no picture (Alayrac et al. 2022).

    Example:
        >>> without_pictures(Example("cats.jpg", "How many cats?", "2")).pictures
        ()
    """
    return replace(example, pictures=())


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question with its choices behind it, lettered, as Kojima et al. 2022 put them.

    Example:
        >>> with_choices("Which?", ["red", "blue"])
        'Which? Answer Choices: (A) red (B) blue'
    """
    listed = " ".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
    return f"{question} Answer Choices: {listed}"
