"""Examples and prompts as data. Pure: no torch.

An `Example` is an image (or several, or none), a question and, when it is a demonstration, its
answer. A `Prompt` is what a template makes of examples: one text in which `<image>` stands once
for each image, and the images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from isthmus.errors import PromptError

IMAGE_TAG = "<image>"
END_TAG = "<|endofchunk|>"

Role = Literal["template", "image", "system", "user", "assistant", "end"]


class Span(NamedTuple):
    """A piece of a rendered prompt.

    Attributes:
        text: The text. An image is one span whose text is `<image>`.
        role: Who wrote it. "template" and "end" are the template's own words, in which special
            tokens have their power; "end" closes an answer. The texts of "system", "user" and
            "assistant" are somebody's words, in which a special token is spelled out as text.
        learned: Whether training learns it: answers and their ends.

    Example:
        >>> Span("a dog", "assistant", learned=True).text
        'a dog'
    """

    text: str
    role: Role = "template"
    learned: bool = False


CUT = Span("", "end")
"""Where a text is cut before it is tokenized, and nothing is written."""


def joined(spans: Iterable[Span]) -> str:
    """The text that spans make."""
    return "".join(span.text for span in spans)


def cut(spans: Iterable[Span], length: int) -> tuple[Span, ...]:
    """The spans of a text's first `length` characters; the last one may be cut.

    Example:
        >>> joined(cut([Span("abc"), Span("def", "user")], 4))
        'abcd'
    """
    kept: list[Span] = []
    for span in spans:
        if length <= 0:
            break
        kept.append(span._replace(text=span.text[:length]))
        length -= len(span.text)
    return tuple(kept)


def skip(spans: Iterable[Span], length: int) -> tuple[Span, ...]:
    """The spans behind a text's first `length` characters; the first one may be cut.

    Example:
        >>> joined(skip([Span("abc"), Span("def", "user")], 4))
        'ef'
    """
    kept: list[Span] = []
    for span in spans:
        if length < len(span.text) or not span.text:
            kept.append(span._replace(text=span.text[max(0, length) :]))
        length -= len(span.text)
    return tuple(kept)


@dataclass(frozen=True)
class Example:
    """A question about images, with its answer when it is a demonstration.

    Attributes:
        images: An image or a sequence of images, in any form that `open_image` takes.
        question: What is asked; empty for a caption.
        answer: What is right; None for the question to be answered.
        rationale: The steps that lead to the answer, for chain-of-thought prompts.
        learned: Whether training learns the answer, in a conversation; otherwise it is only shown.
        lead: What the answer begins with and a prompt says already, such as "Let's think step by
            step."; training does not learn it.

    Example:
        >>> Example("cats.jpg", "How many cats?", "2").images
        ('cats.jpg',)
    """

    images: Any = ()
    question: str = ""
    answer: str | None = None
    rationale: str | None = None
    learned: bool = True
    lead: str = ""

    def __post_init__(self) -> None:
        several = isinstance(self.images, Sequence) and not isinstance(self.images, (str, bytes))
        object.__setattr__(self, "images", tuple(self.images) if several else (self.images,))


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    `Prompt(text, images)` is a text of the caller's own, as if a template had written all of it.
    `Prompt.of` takes the spans that a template renders; they say where the text is tokenized
    apart, and which special tokens in it are only text (see `backbones.span_tokens`).

    Attributes:
        text: The text, with one `<image>` for each image.
        images: The images, in the order of their tags.
        shared: How many characters at the beginning other prompts share: instruction and
            demonstrations, which an engine computes once.
        spans: The text in pieces. The last one of a template's prompt is the open answer, learned
            and of role "assistant"; it is empty unless the prompt leads the answer in.
        junction: What stands between the prompt and an answer that is put behind it.

    Raises:
        PromptError: If tags and images do not match, more is shared than there is, or the spans
            do not make the text.

    Example:
        >>> Prompt("<image>A photo of", ("a.jpg",)).spans
        (Span(text='<image>A photo of', role='template', learned=False),)
    """

    text: str
    images: tuple[Any, ...] = ()
    shared: int = 0
    spans: tuple[Span, ...] = ()
    junction: str = " "

    @classmethod
    def of(
        cls,
        spans: Iterable[Span],
        images: Sequence[Any] = (),
        shared: int = 0,
        junction: str = " ",
    ) -> Prompt:
        """The prompt that spans make.

        Raises:
            PromptError: As for the class.
        """
        spans = tuple(spans)
        return cls(joined(spans), tuple(images), shared, spans, junction)

    def __post_init__(self) -> None:
        if not self.spans:
            object.__setattr__(self, "spans", (Span(self.text),))
        if joined(self.spans) != self.text:
            raise PromptError(
                f"the spans of a prompt make {joined(self.spans)[:60]!r}, expected its text "
                f"{self.text[:60]!r}: use Prompt.of(spans) to make a prompt of other spans"
            )
        tags = self.text.count(IMAGE_TAG)
        if tags != len(self.images):
            raise PromptError(
                f"the prompt has {tags} {IMAGE_TAG} tags and {len(self.images)} images; "
                "expected one tag for each image"
            )
        if not 0 <= self.shared <= len(self.text):
            raise PromptError(
                f"got a shared beginning of {self.shared} characters, expected 0 to "
                f"{len(self.text)}, the length of the prompt"
            )

    @property
    def is_open(self) -> bool:
        """Whether the prompt ends in an open answer, as a template's does."""
        return self.spans[-1].learned

    def beginning(self, length: int) -> Prompt:
        """The prompt's first `length` characters, with the images that are in them."""
        spans = cut(self.spans, length)
        text = joined(spans)
        images = self.images[: text.count(IMAGE_TAG)]
        return Prompt(text, images, min(self.shared, len(text)), spans, self.junction)


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


def lone_surrogate(text: str, what: str = "the text") -> str:
    r"""Where a text is no Unicode, in words; empty if it is.

    JSON can write half of a surrogate pair, and Python reads bytes that are no UTF-8 as such
    halves. They are no characters: no tokenizer takes them, and no file can be written of them.

    Args:
        text: Any text.
        what: What to call it.

    Example:
        >>> lone_surrogate("a cat \ud83d").partition(":")[0]
        "character 7 of the text, after 'a cat ', is no Unicode"
        >>> lone_surrogate("a cat")
        ''
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        before = text[max(0, at - 30) : at]
        return (
            f"character {at + 1} of {what}, after {before!r}, is no Unicode: got the lone "
            f"surrogate U+{ord(text[at]):04X}, half of a character"
        )
    return ""


def without_images(example: Example) -> Example:
    """The example as text alone.

    Flamingo's "0-shot" is two such demonstrations before the query, which show the form of an
    answer and no image (Alayrac et al. 2022).

    Example:
        >>> without_images(Example("cats.jpg", "How many cats?", "2")).images
        ()
    """
    return replace(example, images=())


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question with its choices behind it, lettered, as Kojima et al. 2022 put them.

    Example:
        >>> with_choices("Which?", ["red", "blue"])
        'Which? Answer Choices: (A) red (B) blue'
    """
    listed = " ".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
    return f"{question} Answer Choices: {listed}"
