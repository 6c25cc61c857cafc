"""Prompts in the language model's own chat format. Pure: no torch; the tokenizer is handed in.

A chat template is a program of somebody else's that makes one text of a conversation. Which piece
of it somebody wrote is found by rendering the conversation a second time with a mark in place of
each text: what stands between the marks are the template's own words. The texts put back must make
what the template made of them, letter by letter; where they do not, the template looks at texts or
rewrites them, and the conversation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.chat_format import (
    MARK,
    OTHERWISE,
    ChatFormat,
    Turn,
    chat_format,
    mark,
    special_tokens_of,
)
from isthmus.prompts.prompt import IMAGE_TAG, Example, Prompt, Role, Span, joined
from isthmus.prompts.template import Template, refuse_tags, shown_answer


def chat_template(tokenizer: Any) -> Template:
    r"""A template that renders through a tokenizer's chat template.

    Demonstrations are turns of user and assistant, the instruction is the system's turn, and a lead
    is the beginning of the assistant's. An image stands in the user's turn, before the question.
    Where the chat template has no system role, the instruction heads the first user turn.

    Messages are texts, or lists of parts (`{"type": "image"}`, `{"type": "text", "text": ...}`)
    where the chat template shows images so, as most of vision-language models do. What it writes
    for an image is replaced by `<image>`; tokens around it (Qwen's `<|vision_start|>`) stay.

    What the language model's tokenizer puts before every text by itself (a begin-of-sequence
    token) is left out of the prompt, since it would be there twice.

    Args:
        tokenizer: A Transformers tokenizer with a chat template.

    Raises:
        ConfigError: If the tokenizer has no chat template, or the template drops what users say.
        PromptError: When rendering: if a demonstration has no answer, a text contains a tag, or the
            chat template rewrites a text or an earlier turn.

    Example:
        >>> from isthmus.model.backbones.tiny import byte_tokenizer
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.chat_template = (
        ...     "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        ...     "{% if add_generation_prompt %}[assistant] {% endif %}"
        ... )
        >>> chat_template(tokenizer)([], Example("a.jpg", "What is it?")).text
        '[user] <image>What is it?\n[assistant] '
    """
    source = getattr(tokenizer, "chat_template", None)
    if not source:
        raise ConfigError(
            f"the tokenizer {type(tokenizer).__name__} has no chat template: expected that of a "
            'chat model; choose another template, such as "plain" or "qa"'
        )
    return _examined(tokenizer, str(source), len(tokenizer))


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, examined; made by `chat_template`.

    Attributes:
        format: How it takes messages.
        junction: What it writes between a prompt and the answer.
        end: What it writes after an answer, up to the first special token; None where a prompt is
            not how its answer begins, so that prompts can be made, but nothing can be trained.
    """

    format: ChatFormat
    junction: str = ""
    end: str | None = None

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        conclusion: str = "",
    ) -> Prompt:
        """See `Template`."""
        turns = [(shot, shown_answer(shot, conclusion)) for shot in shots]
        spans = [
            *self.render([*turns, (query, None)], instruction),
            *([Span(self.junction, learned=True)] if lead and self.junction else []),
            Span(refuse_tags(lead), "assistant", learned=True),
        ]
        images = [p for e in (*shots, query) for p in e.images]
        junction = " " if lead else self.junction
        return Prompt.of(spans, images, _begin_of(query, spans), junction)

    def conversation(
        self, turns: Sequence[Example], *, instruction: str = "", conclusion: str = ""
    ) -> tuple[Span, ...]:
        """See `Template`."""
        shown = [(turn, shown_answer(turn, conclusion)) for turn in turns]
        if not shown:
            return ()
        if not self.end:
            raise PromptError(
                "turn 1: the chat template begins an answer in another way than its prompts do, or "
                f"puts nothing behind it, so that no turn can be learned; {OTHERWISE}"
            )
        spans = self.render(shown, instruction)
        answers = [i for i, span in enumerate(spans) if span.role == "assistant"]
        for number, (turn, answer) in enumerate(shown):
            at = answers[number]
            if spans[at].text != answer:
                raise PromptError(
                    f"turn {number + 1}: the chat template trims the answer {answer[:60]!r}: "
                    f"expected none with white space at its ends. Take it off, or {OTHERWISE}"
                )
            before = spans[: at - bool(self.junction)]
            asked = self.render([*shown[:number], (turn, None)], instruction)
            after = spans[at + 1 : at + 2]
            if _pieces(before) != _pieces(asked) or [s.role for s in after] != ["end"]:
                raise PromptError(
                    f"turn {number + 1}: the chat template rewrites a turn when others follow: it "
                    f"prompts with {joined(asked)[-60:]!r}, and in the whole conversation there is "
                    f"{joined(before)[-60:]!r}. Make each turn a record of its own, or {OTHERWISE}"
                )
        # what a template writes after the last answer's end is never read by anybody
        return tuple(spans[: answers[-1] + 2])

    def render(self, turns: Sequence[Turn], instruction: str = "") -> list[Span]:
        """The spans of a conversation.

        Args:
            turns: Questions with their answers; the last one's may be None, which prompts for it.
            instruction: What the system says.

        Raises:
            PromptError: If a text contains a tag, or is rewritten by the template.
        """
        texts = _texts_of(turns, instruction)
        marks = [mark(n) for n in range(len(texts))]
        framed = self.format.written(turns, instruction, marks)
        order = [int(n) for n in MARK.findall(framed)]
        for n, text in enumerate(texts):
            if order.count(n) != 1:
                raise PromptError(
                    f"{text.whose}: the chat template shows it {order.count(n)} times, expected "
                    f"once; {OTHERWISE}"
                )
        shown = [text.text for text in texts]
        if _filled(framed, shown) != self.format.written(turns, instruction, shown):
            shown = [
                self._as_shown(turns, instruction, n, text, framed) for n, text in enumerate(texts)
            ]
            native = self.format.written(turns, instruction, [text.text for text in texts])
            if _filled(framed, shown) != native:
                raise PromptError(
                    f"turn {len(turns)}: the chat template makes another text of this conversation "
                    f"than of its pieces; {OTHERWISE}"
                )
        return self._spans(framed, texts, shown, sum(len(e.images) for e, _ in turns))

    def _as_shown(
        self,
        turns: Sequence[Turn],
        instruction: str,
        number: int,
        text: _Text,
        framed: str,
    ) -> str:
        """A text as the template shows it, which may trim it.

        Raises:
            PromptError: If the template makes something else of it.
        """
        fill = [mark(n) for n in range(len(_texts_of(turns, instruction)))]
        fill[number] = text.text
        written = self.format.written(turns, instruction, fill)
        for candidate in (text.text, text.text.strip(), text.text.lstrip(), text.text.rstrip()):
            fill[number] = candidate
            if _filled(framed, fill) == written:
                return candidate
        raise PromptError(
            f"{text.whose}: the chat template rewrites {text.text[:60]!r}, or other turns because "
            f"of it; take out what it looks for (such as <think>), or {OTHERWISE}"
        )

    def _spans(
        self, framed: str, texts: Sequence[_Text], shown: Sequence[str], images: int
    ) -> list[Span]:
        """The template's words and the texts between them, in spans."""
        spans: list[Span] = []
        fragments = MARK.split(framed)  # words, number of a text, words, number, ..., words
        for place, fragment in enumerate(fragments):
            if place % 2:
                text = texts[int(fragment)]
                learned = text.role == "assistant"
                spans.append(Span(shown[int(fragment)], text.role, learned))
                continue
            before = place > 0 and texts[int(fragments[place - 1])].role == "assistant"
            after = (
                place + 1 < len(fragments) and texts[int(fragments[place + 1])].role == "assistant"
            )
            if before and self.end and fragment.startswith(self.end):
                spans.append(Span(self.end, "end", learned=True))
                fragment = fragment.removeprefix(self.end)
            junction = self.junction if after and fragment.endswith(self.junction) else ""
            words = fragment[: len(fragment) - len(junction)]
            for number, piece in enumerate(words.split(self.format.placeholder)):
                spans += [Span(IMAGE_TAG, "image")] * bool(number)
                spans += [Span(piece)] * bool(piece)
            spans += [Span(junction, learned=True)] * bool(junction)
        found = sum(span.role == "image" for span in spans)
        if found != images:
            raise PromptError(f"the chat template shows {found} images of {images}; {OTHERWISE}")
        return spans


def _filled(framed: str, texts: Sequence[str]) -> str:
    """A rendered conversation with texts in place of their marks."""
    return MARK.sub(lambda match: texts[int(match[1])], framed)


@dataclass(frozen=True)
class _Text:
    """Somebody's words in a conversation, and whose they are, for messages."""

    text: str
    role: Role
    whose: str


def _texts_of(turns: Sequence[Turn], instruction: str) -> list[_Text]:
    """All texts of a conversation, in their order.

    Raises:
        PromptError: If one contains a tag.
    """
    texts = [_Text(refuse_tags(instruction), "system", "the instruction")] if instruction else []
    for number, (example, answer) in enumerate(turns, start=1):
        if example.question:
            question = refuse_tags(example.question)
            texts.append(_Text(question, "user", f"the question of turn {number}"))
        if answer is not None:
            texts.append(_Text(refuse_tags(answer), "assistant", f"the answer of turn {number}"))
    return texts


def _begin_of(query: Example, spans: Sequence[Span]) -> int:
    """Where what is the query's own begins: demonstrations and frame stand before it."""
    own: list[int] = []
    if query.images:
        own.append([i for i, s in enumerate(spans) if s.role == "image"][-len(query.images)])
    if query.question:
        own.append(max(i for i, s in enumerate(spans) if s.role == "user"))
    if not own:
        own = [max((i + 1 for i, s in enumerate(spans) if s.role == "end"), default=0)]
    return len(joined(spans[: min(own)]))


def _pieces(spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """Spans as what tokens depend on: neighbours that nothing parts are one."""
    found: list[tuple[str, bool]] = []
    for text, _, learned in spans:
        if found and found[-1][1] == learned:
            found[-1] = (found[-1][0] + text, learned)
        else:
            found.append((text, learned))
    return found


@lru_cache(maxsize=8)
def _examined(tokenizer: Any, source: str, size: int) -> ChatTemplate:
    """A tokenizer's chat template with how its answers begin and end.

    Args:
        tokenizer: The tokenizer.
        source: The chat template, and
        size: how many tokens there are, since both can be changed.
    """
    format = chat_format(tokenizer)
    probe = Example((), "Q")
    try:
        prompt = format.written([(probe, None)], "", [mark(0)])
        whole = format.written([(probe, "A")], "", [mark(0), mark(1)])
    except PromptError:
        return ChatTemplate(format)
    before, _, tail = whole.partition(mark(1))
    if not before.startswith(prompt):
        return ChatTemplate(format)
    special = [tail.find(t) + len(t) for t in special_tokens_of(tokenizer) if t in tail]
    end = tail[: min(special, default=len(tail))]
    return ChatTemplate(format, before[len(prompt) :], end)
