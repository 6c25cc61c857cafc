"""A conversation as a prompt: turns in, one text with its images out.

Whatever the template, the prompt of a later turn begins with the prompt of the one before and the
answer to it, so that an engine which keeps prefixes computes only what is new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import IMAGE_TAG, Example, Prompt, Span, without_tags
from isthmus.prompts.template import Template, refuse_tags
from isthmus.prompts.templates import template_named
from isthmus.reasoning.question import STOPS

Role = Literal["system", "user", "assistant"]
_GAP = "\U0010fffe"
"""Where an image stands inside a text while the template renders; it is no character."""


@dataclass(frozen=True)
class Turn:
    """What somebody says.

    Attributes:
        role: Who: "system", "user" or "assistant".
        parts: Texts and images in their order; whatever is no text is an image.
    """

    role: Role
    parts: tuple[Any, ...]

    @property
    def images(self) -> tuple[Any, ...]:
        """Its images."""
        return tuple(p for p in self.parts if not isinstance(p, str))

    @property
    def text(self) -> str:
        """Its texts, a line each."""
        return "\n".join(p for p in self.parts if isinstance(p, str))


class Form:
    r"""One way of writing conversations down.

    Args:
        name: A template's name, "chat" for the tokenizer's own.
        tokenizer: The language model's tokenizer.

    Attributes:
        name: The template's name.
        is_chat: Whether it is the tokenizer's own.
        stop: Strings that end an answer without anyone's asking.

    Raises:
        ConfigError: If the template is unknown, or the tokenizer has none.

    Example:
        >>> turns = [Turn("system", ("Be brief.",)), Turn("user", ("Why?",))]
        >>> Form("plain", None).prompt(turns).text
        'Be brief.\nQuestion: Why? Answer:'
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name = name
        self.is_chat = name == "chat"
        self.stop: tuple[str, ...] = () if self.is_chat else STOPS
        self._template: Template = template_named(name, tokenizer)

    def prompt(
        self, turns: Sequence[Turn], shots: Sequence[Example] = (), *, lead: str = ""
    ) -> Prompt:
        """The prompt of a conversation that the assistant is to go on with.

        Turns of one role that follow each other are one. A last turn of the assistant's is the
        beginning of its answer. What the system says later on heads the user's next turn, since
        most chat templates know it at the beginning alone.

        Args:
            turns: The conversation.
            shots: Demonstrations, shown before it as turns of their own.
            lead: What the answer begins with.

        Raises:
            PromptError: If the user has not said anything, or a text contains a tag.
        """
        instruction, asked, answers, begun = self._paired(turns)
        if not asked:
            raise PromptError("the conversation has no message of the user: expected one to answer")
        examples = [
            self._example(said, answer) for said, answer in zip(asked, answers, strict=False)
        ]
        context = [*map(self._shot, shots), *examples[: len(asked) - 1]]
        query = self._example(asked[-1], None)
        lead = f"{begun} {lead}" if begun and lead else begun or lead
        made = self._template(context, query, instruction=instruction, lead=lead)
        images = tuple(p for s in shots for p in s.images)
        images += tuple(p for said in asked for p in said.images)
        shared = len(made.text[: made.shared].replace(_GAP, IMAGE_TAG))
        spans = [part for span in made.spans for part in _with_images(span)]
        return Prompt.of(spans, images, shared, made.junction)

    def _paired(self, turns: Sequence[Turn]) -> tuple[str, list[Turn], list[str | None], str]:
        """Instruction, the user's turns, the answers to them, and a beginning of the last one."""
        instructions: list[str] = []
        asked: list[Turn] = []
        answers: list[str | None] = []
        held: tuple[Any, ...] = ()
        for turn in turns:
            if turn.role == "system":
                refuse_tags(turn.text)
                if asked:
                    held += (turn.text,)
                else:
                    instructions.append(turn.text)
            elif turn.role == "user":
                own = held + _placed(turn).parts
                held = ()
                if asked and answers[-1] is None:
                    asked[-1] = Turn("user", asked[-1].parts + own)
                else:
                    asked.append(Turn("user", own))
                    answers.append(None)
            elif not asked:
                raise PromptError(
                    "the conversation begins with the assistant: expected the user's message first"
                )
            else:
                said = without_tags(turn.text).replace(_GAP, "")
                before = answers[-1]
                answers[-1] = said if before is None else f"{before}\n{said}"
        if held:
            raise PromptError("the last message is the system's: expected the user's")
        begun = ""
        if asked and answers[-1] is not None:
            begun = answers[-1]
        return "\n\n".join(instructions), asked, answers, begun

    def _shot(self, shot: Example) -> Example:
        """A demonstration, in whose question tags may say where its images stand."""
        if IMAGE_TAG not in shot.question or not shot.images:
            return shot
        said = _placed(Turn("user", (*shot.images, shot.question)))
        return replace(self._example(said, shot.answer), rationale=shot.rationale)

    def _example(self, said: Turn, answer: str | None) -> Example:
        """A turn of the user's as the template takes it.

        Images before the text stand where the template puts images. Those behind it stay there
        in a chat; the other templates were learned with images first.
        """
        parts = list(said.parts)
        if not self.is_chat and parts and not isinstance(parts[-1], str):
            texts = [i for i, p in enumerate(parts) if isinstance(p, str)]
            if len(texts) == 1:
                parts = [*parts[: texts[0]], *parts[texts[0] + 1 :], parts[texts[0]]]
        first = next((i for i, p in enumerate(parts) if isinstance(p, str)), len(parts))
        text = ""
        for i, part in enumerate(parts[first:], first):
            if not isinstance(part, str):
                text += _GAP
                continue
            glue = "\n" if i > first and isinstance(parts[i - 1], str) else ""
            text += glue + refuse_tags(part).replace(_GAP, "")
        return Example(tuple(parts[:first]), text, answer)


def _placed(turn: Turn) -> Turn:
    """A turn whose images stand where `<image>` does in its text, if it does.

    Harnesses such as lm-eval send the text with its tags, and the images beside it.

    Raises:
        PromptError: If there are not as many tags as images.
    """
    first, *rest = turn.text.split(IMAGE_TAG)
    if not rest or not turn.images:
        return turn
    if len(rest) != len(turn.images):
        raise PromptError(
            f"a message has {len(rest)} {IMAGE_TAG} tags in its text and {len(turn.images)} "
            "images beside it: expected a tag for each image, or none"
        )
    parts: list[Any] = []
    said = False
    for number, text in enumerate([first, *rest]):
        # As in training, the end of the line behind a first image is no part of the question
        text = text if said else text.lstrip()
        said = said or bool(text)
        parts += [text] * bool(text)
        parts += turn.images[number : number + 1]
    return replace(turn, parts=tuple(parts))


def _with_images(span: Span) -> list[Span]:
    """A span, with images where somebody's text has gaps for them."""
    first, *rest = span.text.split(_GAP)
    parts = [span._replace(text=first)]
    for text in rest:
        parts += [Span(IMAGE_TAG, "image"), span._replace(text=text)]
    return [part for part in parts if part.text or not rest]


class Conversations:
    """Chooses the form in which a model reads a conversation.

    A language model was taught chats, its own way; what joins it to a vision encoder was taught
    images in the model's template. So a conversation with an image takes that template, and one
    without the chat template, where there is one that can be rendered.

    Args:
        model: The model, whose tokenizer and configuration are read.
        template: The name of a template for both.

    Raises:
        ConfigError: If that is unknown, or the tokenizer has no chat template.

    Example:
        >>> import isthmus as im
        >>> talk = Conversations(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> talk.form([Turn("user", ("Why?",))]).name
        'plain'
    """

    def __init__(self, model: Any, template: str | None = None) -> None:
        tokenizer = model.language.tokenizer
        self._shown = Form(template or model.config.template, tokenizer)
        self._told = self._shown
        if template is None and not self._shown.is_chat:
            with contextlib.suppress(ConfigError):
                self._told = Form("chat", tokenizer)

    def form(self, turns: Sequence[Turn], shots: Sequence[Example] = ()) -> Form:
        """The form for a conversation and the demonstrations before it."""
        seen = any(t.images for t in turns) or any(s.images for s in shots)
        return self._shown if seen else self._told
