"""What a tokenizer's chat template makes of messages. Pure: no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import IMAGE_TAG, Example

Message = dict[str, Any]
Turn = tuple[Example, str | None]
"""A question, and the answer as it is shown; None for the one that is asked for."""
OTHERWISE = 'choose another template, such as "plain" or "qa"'
MARK = re.compile("\ue000([0-9]+)\ue001")


def mark(number: int) -> str:
    """What stands for a text: characters for private use, which no template looks for."""
    return f"\ue000{number}\ue001"


@dataclass(frozen=True)
class ChatFormat:
    """How a tokenizer's chat template takes messages; made by `chat_format`.

    Attributes:
        tokenizer: The tokenizer.
        in_parts: Whether messages are lists of parts.
        shows_images: Whether it writes something for a part that is an image.
        placeholder: What it writes for an image.
        has_system: Whether it shows a system's turn.
    """

    tokenizer: Any
    in_parts: bool = False
    shows_images: bool = False
    placeholder: str = IMAGE_TAG
    has_system: bool = False

    def written(self, turns: Sequence[Turn], instruction: str, fill: Sequence[str]) -> str:
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
            images = [None] * len(example.images)
            messages.append(self._message("user", [*heads, *images, *said]))
            if answer is not None:
                messages.append(self._message("assistant", [next(left)]))
        try:
            return _write(self.tokenizer, messages, prompting=turns[-1][1] is None)
        except Exception as error:  # Jinja's own errors, and whatever a template calls
            raise PromptError(
                f"the chat template cannot render the conversation ({error}); {OTHERWISE}"
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
            elif not self.shows_images:
                parts.append({"type": "text", "text": IMAGE_TAG})
            else:
                parts.append({"type": "image"})
        return {"role": role, "content": parts}


def chat_format(tokenizer: Any) -> ChatFormat:
    """How a tokenizer's chat template takes messages, found by trying it out.

    Args:
        tokenizer: A Transformers tokenizer with a chat template.

    Raises:
        ConfigError: If the chat template drops what users say, or cannot be rendered.

    Example:
        >>> from isthmus.model.backbones.tiny import byte_tokenizer
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.chat_template = (
        ...     "{% for m in messages %}{% for part in m['content'] %}"
        ...     "{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
        ... )
        >>> chat_format(tokenizer).placeholder
        '[IMG]'
    """
    made = ChatFormat(tokenizer)
    placeholder = _placeholder(tokenizer)
    probe = Example((), "Q")
    if placeholder:
        made = replace(made, in_parts=True, shows_images=True, placeholder=placeholder)
    else:
        try:
            shown = mark(0) in made.written([(probe, None)], "", [mark(0)])
            why = ""
        except PromptError as error:
            shown, why = False, str(error.__cause__)
        if not shown:
            made = replace(made, in_parts=True)
            try:
                shown = made.written([(probe, None)], "", [mark(0)]).count(mark(0)) == 1
            except PromptError as error:
                why = why or str(error.__cause__)
        if not shown:
            raise ConfigError(
                f"the tokenizer's chat template cannot be rendered ({why}); {OTHERWISE}"
                if why
                else f"the tokenizer's chat template leaves out what the user says; {OTHERWISE}"
            )
    try:
        system = replace(made, has_system=True)
        texts = [mark(0), mark(1)]
        # some templates raise, others drop it without a word
        has_system = mark(0) in system.written([(probe, None)], "S", texts)
    except PromptError:
        has_system = False
    return replace(made, has_system=has_system)


def _placeholder(tokenizer: Any) -> str:
    """What a chat template writes for an image among a message's parts; "" if it takes no parts."""

    def shown(images: int) -> str:
        parts: list[dict[str, str]] = [{"type": "image"}] * images
        parts.append({"type": "text", "text": mark(0)})
        return _write(tokenizer, [{"role": "user", "content": parts}], prompting=True)

    try:
        one, two = shown(1), shown(2)
    except Exception:  # Jinja's own errors: it takes texts alone
        return ""
    alike = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    written = two[alike : alike + len(two) - len(one)]
    if not written.strip() or "type" in written or one.count(mark(0)) != 1:
        return ""  # a list written out is no image
    if IMAGE_TAG in written:
        return IMAGE_TAG
    special = sorted(special_tokens_of(tokenizer), key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, special)), written) if special else []
    chosen = found[len(found) // 2] if len(found) % 2 else written
    return chosen if one.count(chosen) == 1 else ""


def special_tokens_of(tokenizer: Any) -> set[str]:
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
