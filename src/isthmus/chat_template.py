"""Prompts in the language model's own chat format. Pure: no torch; the tokenizer is handed in.

A chat template is a program of somebody else's that makes one text of a conversation. Which piece
of it somebody wrote is found by rendering the conversation a second time with a mark in place of
each text: what stands between the marks are the template's own words. The texts put back must make
what the template made of them, letter by letter; where they do not, the template looks at texts or
rewrites them, and the conversation is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from isthmus.errors import ConfigError, PromptError
from isthmus.prompt import IMAGE_TAG, Example, Prompt, Role, Span, joined
from isthmus.templates import Template, refuse_tags, shown_answer

Message = dict[str, Any]


def chat_template(tokenizer: Any) -> Template:
    r"""A template that renders through a tokenizer's chat template.

    Demonstrations are turns of user and assistant, the instruction is the system's turn, and a lead
    is the beginning of the assistant's. An image stands in the user's turn, before the question.
    Where the chat template has no system role, the instruction heads the first user turn.

    Messages are texts, or lists of parts (`{"type": "image"}`, `{"type": "text", "text": ...}`)
    where the chat template shows images so, as most of vision-language models do. What it writes
    for an image is replaced by `<image>`; tokens around it, such as Qwen's `<|vision_start|>`, stay.

    What the language model's tokenizer puts before every text by itself (a begin-of-sequence
    token) is left out of the prompt, since it would be there twice.

    Args:
        tokenizer: A Transformers tokenizer with a chat template.

    Raises:
        ConfigError: If the tokenizer has no chat template, or the template drops what users say.
        PromptError: When rendering: if a demonstration has no answer, a text contains a tag, or the
            chat template rewrites a text or an earlier turn.

    Example:
        >>> from isthmus.backbones.tiny import byte_tokenizer
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
        tokenizer: The tokenizer.
        in_parts: Whether messages are lists of parts.
        placeholder: What the template writes for an image.
        has_system: Whether it shows a system's turn.
        junction: What it writes between a prompt and the answer.
        end: What it writes after an answer, up to the first special token; None where a prompt is
            not how its answer begins, so that prompts can be made, but nothing can be trained.
    """

    tokenizer: Any
    in_parts: bool = False
    placeholder: str = IMAGE_TAG
    has_system: bool = False
    junction: str = ""
    end: str | None = None

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        reason: bool | str = False,
    ) -> Prompt:
        """See `Template`."""
        turns = [(shot, shown_answer(shot, reason)) for shot in shots]
        spans = [
            *self.render([*turns, (query, None)], instruction),
            *([Span(self.junction, learned=True)] if lead and self.junction else []),
            Span(refuse_tags(lead), "assistant", learned=True),
        ]
        pictures = [p for e in (*shots, query) for p in e.pictures]
        junction = " " if lead else self.junction
        return Prompt.of(spans, pictures, _begin_of(query, spans), junction)

    def conversation(
        self, turns: Sequence[Example], *, instruction: str = "", reason: bool | str = False
    ) -> tuple[Span, ...]:
        """See `Template`."""
        shown = [(turn, shown_answer(turn, reason)) for turn in turns]
        if not shown:
            return ()
        if not self.end:
            raise PromptError(
                "the chat template begins an answer in another way than its prompts do, or puts "
                f"nothing behind it, so that no turn can be learned; {_OTHERWISE}"
            )
        spans = self.render(shown, instruction)
        answers = [i for i, span in enumerate(spans) if span.role == "assistant"]
        for number, (turn, answer) in enumerate(shown):
            at = answers[number]
            if spans[at].text != answer:
                raise PromptError(
                    f"turn {number + 1}: the chat template trims the answer {answer[:60]!r}: "
                    f"expected none with white space at its ends. Take it off, or {_OTHERWISE}"
                )
            before = spans[: at - bool(self.junction)]
            asked = self.render([*shown[:number], (turn, None)], instruction)
            after = spans[at + 1 : at + 2]
            if _pieces(before) != _pieces(asked) or [s.role for s in after] != ["end"]:
                raise PromptError(
                    f"turn {number + 1}: the chat template rewrites a turn when others follow: it "
                    f"prompts with {joined(asked)[-60:]!r}, and in the whole conversation there is "
                    f"{joined(before)[-60:]!r}. Make each turn a record of its own, or {_OTHERWISE}"
                )
        last = answers[-1] + 2  # what follows the last answer's end is the next turn's
        return tuple(spans[:last])

    def render(self, turns: Sequence[Turn], instruction: str = "") -> list[Span]:
        """The spans of a conversation.

        Args:
            turns: Questions with their answers; the last one's may be None, which prompts for it.
            instruction: What the system says.

        Raises:
            PromptError: If a text contains a tag, or is rewritten by the template.
        """
        texts = _texts_of(turns, instruction)
        marks = [_mark(n) for n in range(len(texts))]
        framed = self._written(turns, instruction, marks)
        order = [int(n) for n in _MARK.findall(framed)]
        for n, text in enumerate(texts):
            if order.count(n) != 1:
                raise PromptError(
                    f"{text.whose}: the chat template shows it {order.count(n)} times, expected "
                    f"once; {_OTHERWISE}"
                )
        shown = [text.text for text in texts]
        if _filled(framed, shown) != self._written(turns, instruction, shown):
            shown = [
                self._as_shown(turns, instruction, n, text, framed) for n, text in enumerate(texts)
            ]
            native = self._written(turns, instruction, [text.text for text in texts])
            if _filled(framed, shown) != native:
                raise PromptError(
                    f"turn {len(turns)}: the chat template makes another text of this conversation "
                    f"than of its pieces; {_OTHERWISE}"
                )
        return self._spans(framed, texts, shown, sum(len(e.pictures) for e, _ in turns))

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
        fill = [_mark(n) for n in range(len(_texts_of(turns, instruction)))]
        fill[number] = text.text
        written = self._written(turns, instruction, fill)
        for candidate in (text.text, text.text.strip(), text.text.lstrip(), text.text.rstrip()):
            fill[number] = candidate
            if _filled(framed, fill) == written:
                return candidate
        raise PromptError(
            f"{text.whose}: the chat template rewrites {text.text[:60]!r}, or other turns because "
            f"of it; take out what it looks for (such as <think>), or {_OTHERWISE}"
        )

    def _spans(
        self, framed: str, texts: Sequence[_Text], shown: Sequence[str], pictures: int
    ) -> list[Span]:
        """The template's words and the texts between them, in spans."""
        spans: list[Span] = []
        fragments = _MARK.split(framed)  # words, number of a text, words, number, ..., words
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
            for number, piece in enumerate(words.split(self.placeholder)):
                spans += [Span(IMAGE_TAG, "image")] * bool(number)
                spans += [Span(piece)] * bool(piece)
            spans += [Span(junction, learned=True)] * bool(junction)
        found = sum(span.role == "image" for span in spans)
        if found != pictures:
            raise PromptError(f"the chat template shows {found} images of {pictures}; {_OTHERWISE}")
        return spans

    def _written(self, turns: Sequence[Turn], instruction: str, fill: Sequence[str]) -> str:
        """What the template makes of a conversation whose texts are `fill`.

        Raises:
            PromptError: If it raises something.
        """
        left = iter(fill)
        messages: list[Message] = []
        head = next(left) if instruction else ""
        if head and self.has_system:
            messages.append(self._message("system", [head]))
            head = ""
        for example, answer in turns:
            heads = [f"{head}\n\n"] if head else []
            head = ""
            said = [next(left)] if example.question else []
            images = [None] * len(example.pictures)
            messages.append(self._message("user", [*heads, *images, *said]))
            if answer is not None:
                messages.append(self._message("assistant", [next(left)]))
        try:
            return _write(self.tokenizer, messages, prompting=turns[-1][1] is None)
        except Exception as error:  # Jinja's own errors, and whatever a template calls
            raise PromptError(
                f"the chat template cannot render the conversation ({error}); {_OTHERWISE}"
            ) from error

    def _message(self, role: str, content: Sequence[str | None]) -> Message:
        """A message; None stands for an image."""
        if not self.in_parts:
            return {
                "role": role,
                "content": "".join(IMAGE_TAG if c is None else c for c in content),
            }
        parts: list[dict[str, str]] = []
        for piece in content:
            if piece is not None:
                parts.append({"type": "text", "text": piece})
            elif self.placeholder == _NO_IMAGES:
                parts.append({"type": "text", "text": IMAGE_TAG})
            else:
                parts.append({"type": "image"})
        return {"role": role, "content": parts}


Turn = tuple[Example, str | None]
"""A question, and the answer as it is shown; None for the one that is asked for."""
_OTHERWISE = 'choose another template, such as "plain" or "qa"'
_NO_IMAGES = ""
_MARK = re.compile("\ue000([0-9]+)\ue001")


def _mark(number: int) -> str:
    """What stands for a text: characters for private use, which no template looks for."""
    return f"\ue000{number}\ue001"


def _filled(framed: str, texts: Sequence[str]) -> str:
    """A rendered conversation with texts in place of their marks."""
    return _MARK.sub(lambda match: texts[int(match[1])], framed)


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
    if query.pictures:
        own.append([i for i, s in enumerate(spans) if s.role == "image"][-len(query.pictures)])
    if query.question:
        own.append(max(i for i, s in enumerate(spans) if s.role == "user"))
    if not own:
        own = [max((i + 1 for i, s in enumerate(spans) if s.role == "end"), default=0)]
    return len(joined(spans[: min(own)]))


def _pieces(spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """Spans as what tokens depend on: neighbours that nothing parts are one."""
    found: list[tuple[str, bool]] = []
    for _, learned, text in ((s.role, s.learned, s.text) for s in spans):
        if found and found[-1][1] == learned:
            found[-1] = (found[-1][0] + text, learned)
        else:
            found.append((text, learned))
    return found


@lru_cache(maxsize=8)
def _examined(tokenizer: Any, source: str, size: int) -> ChatTemplate:
    """What a chat template does, found by trying it out.

    Args:
        tokenizer: The tokenizer.
        source: The chat template, and
        size: how many tokens there are, since both can be changed.
    """
    made = ChatTemplate(tokenizer)
    placeholder = _placeholder(tokenizer)
    probe = Example((), "Q")
    if placeholder:
        made = replace(made, in_parts=True, placeholder=placeholder)
    else:
        try:
            shown = _mark(0) in made._written([(probe, None)], "", [_mark(0)])
            why = ""
        except PromptError as error:
            shown, why = False, str(error.__cause__)
        if not shown:
            made = replace(made, in_parts=True, placeholder=_NO_IMAGES)
            try:
                shown = made._written([(probe, None)], "", [_mark(0)]).count(_mark(0)) == 1
            except PromptError as error:
                why = why or str(error.__cause__)
        if not shown:
            raise ConfigError(
                f"the tokenizer's chat template cannot be rendered ({why}); {_OTHERWISE}"
                if why
                else f"the tokenizer's chat template leaves out what the user says; {_OTHERWISE}"
            )
    try:
        system = replace(made, has_system=True)
        texts = [_mark(0), _mark(1)]
        # some templates raise, others drop it without a word
        has_system = _mark(0) in system._written([(probe, None)], "S", texts)
    except PromptError:
        has_system = False
    made = replace(made, has_system=has_system)
    return _with_answers(made, probe)


def _with_answers(made: ChatTemplate, probe: Example) -> ChatTemplate:
    """The template with how an answer begins and ends."""
    try:
        prompt = made._written([(probe, None)], "", [_mark(0)])
        whole = made._written([(probe, "A")], "", [_mark(0), _mark(1)])
    except PromptError:
        return made
    before, _, tail = whole.partition(_mark(1))
    if not before.startswith(prompt):
        return made
    special = [tail.find(t) + len(t) for t in _special_tokens(made.tokenizer) if t in tail]
    end = tail[: min(special, default=len(tail))]
    return replace(made, junction=before[len(prompt) :], end=end)


def _placeholder(tokenizer: Any) -> str:
    """What a chat template writes for an image among a message's parts; "" if it takes no parts."""

    def shown(images: int) -> str:
        parts: list[dict[str, str]] = [{"type": "image"}] * images
        parts.append({"type": "text", "text": _mark(0)})
        return _write(tokenizer, [{"role": "user", "content": parts}], prompting=True)

    try:
        one, two = shown(1), shown(2)
    except Exception:  # Jinja's own errors: it takes texts alone
        return ""
    alike = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    written = two[alike : alike + len(two) - len(one)]
    if not written.strip() or "type" in written or one.count(_mark(0)) != 1:
        return ""  # a list written out is no image
    if IMAGE_TAG in written:
        return IMAGE_TAG
    special = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, special)), written) if special else []
    chosen = found[len(found) // 2] if len(found) % 2 else written
    return chosen if one.count(chosen) == 1 else ""


def _special_tokens(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's special tokens."""
    known = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {*tokenizer.all_special_tokens, *(t.content for t in known if t.special)} - {""}


def _write(tokenizer: Any, messages: Sequence[Message], *, prompting: bool) -> str:
    """The chat as text, without what the tokenizer puts before every text anyway."""
    text = str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompting
        )
    )
    start = getattr(tokenizer, "bos_token", None)
    if start and text.startswith(start) and _adds_start(tokenizer):
        return text[len(start) :]
    return text


def _adds_start(tokenizer: Any) -> bool:
    """Whether encoding a text begins with the begin-of-sequence token."""
    ids = list(tokenizer.encode("a"))
    return bool(ids) and ids[0] == tokenizer.bos_token_id
