"""Conversations as others write them, made into turns. Pure: no torch.

LLaVA's (`conversations` of `from` and `value`) and those of OpenAI and Transformers (`messages` of
`role` and `content`, a string or typed parts). `<image>`, or the tag of another kind, in a question
says with which turn an attachment is shown; it is taken out, since the attachments of a turn stand
before its question (LLaVA's own code moves them there too). Without any such tag all of them are
shown with the first turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isthmus.data.interleaved import plain
from isthmus.data.records import Medium
from isthmus.data.tags import left_of, split_at_tags
from isthmus.media.kinds import kind_of, kinds
from isthmus.prompts.prompt import IMAGE_TAG, Example

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
Read = Callable[[Any, str], Medium]
"""Makes an attachment of what stands for it in a message, and the name of its kind."""


def turns(messages: Sequence[Any], media: Sequence[Medium], read: Read) -> tuple[Example, ...]:
    r"""Question and answer in turn.

    Args:
        messages: The messages.
        media: Attachments that the row lists beside the messages, in the order of the tags.
        read: Makes an attachment of a part that says where it is.

    Returns:
        The turns; text of a system message stands before the first question.

    Raises:
        ValueError: If questions and answers do not take turns, tags and images do not match, or
            a tag stands where no image can.

    Example:
        >>> from pathlib import Path
        >>> from isthmus.media.file_ref import FileRef
        >>> chat = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A cat"}]
        >>> turns(chat, [FileRef(Path("cat.jpg"))], lambda value, kind: value)[0].question
        'Who?'
    """
    waiting = list(media)
    said: list[tuple[str, str, list[Medium]]] = []
    weights: list[Any] = []
    for message in messages:
        role, content = _message(message)
        if role == "assistant":
            weights.append(message.get("weight", 1))
        text, shown = _content(content, waiting, read)
        if shown and role != "user":
            what = kind_of(shown[0])
            raise ValueError(f"an {what} in a turn of the {role}: expected it in a user's")
        said.append((role, text, shown))
    if waiting:
        if len(waiting) < len(media):
            raise ValueError(
                f"{len(media) - len(waiting)} {IMAGE_TAG} tags and {len(media)} images"
            )
        first = next((shown for role, _, shown in said if role == "user"), None)
        if first is not None:
            first[:0] = waiting
    return tuple(
        replace(turn, learned=_is_learned(weight))
        for turn, weight in zip(_pairs(said), weights, strict=True)
    )


def _is_learned(weight: Any) -> bool:
    """Whether an answer is learned, as OpenAI's files for fine-tuning say it: 0 or 1."""
    if weight not in (0, 1, None):
        raise ValueError(f'"weight" is {weight!r}: expected 0 or 1')
    return weight != 0


def _pairs(said: Sequence[tuple[str, str, list[Medium]]]) -> tuple[Example, ...]:
    """Turns of what was said."""
    system = [text for role, text, _ in said if role == "system"]
    rest = [entry for entry in said if entry[0] != "system"]
    if not rest or len(rest) % 2:
        raise ValueError(f"{len(rest)} messages: expected questions and answers in turn")
    pairs: list[Example] = []
    for (asker, question, shown), (answerer, answer, _) in zip(rest[::2], rest[1::2], strict=True):
        if (asker, answerer) != ("user", "assistant"):
            raise ValueError(f"got a {asker}, then a {answerer}: expected user, then assistant")
        before = [] if pairs else system
        pairs.append(Example(tuple(shown), "\n".join([*before, question]).strip(), answer))
    return tuple(pairs)


def _message(message: Any) -> tuple[str, Any]:
    """Role and content of a message."""
    if not isinstance(message, Mapping):
        raise TypeError(f"a message must be an object, got {type(message).__name__}")
    role = str(message.get("role", message.get("from")))
    if role.lower() not in ROLES:
        raise ValueError(f'the role "{role}": expected one of {", ".join(ROLES)}')
    content = message.get("content", message.get("value"))
    if content is None:
        raise ValueError('a message without "content" or "value"')
    return ROLES[role.lower()], content


def _content(content: Any, waiting: list[Medium], read: Read) -> tuple[str, list[Medium]]:
    """Text of a message and what is shown with it; takes its attachments from those waiting."""
    if isinstance(content, str):
        return take_tags(content, waiting)
    known = {part: name for name, kind in kinds().items() for part in kind.parts}
    texts: list[str] = []
    shown: list[Medium] = []
    for part in content:
        kind = part.get("type")
        # A table with one column for all kinds of parts holds None for the keys of the others
        inside = next((part[k] for k in (kind, "path", "url") if part.get(k) is not None), None)
        if kind == "text":
            texts.append(plain(inside, "a text"))
        elif kind not in known:
            raise ValueError(f'a part of type "{kind}": expected text, {", ".join(sorted(known))}')
        elif inside is None and not waiting:
            raise ValueError(f"a part of type {kind} that says no path")
        elif inside is None:
            own = [n for n, medium in enumerate(waiting) if kind_of(medium) == known[kind]]
            shown.append(waiting.pop(own[0] if own else 0))
        else:
            if kind == "image_url" and isinstance(inside, Mapping):
                inside = inside["url"]
            shown.append(read(inside, known[kind]))
    return "\n".join(texts).strip(), shown


def take_tags(text: str, waiting: list[Medium]) -> tuple[str, list[Medium]]:
    """A question without its tags, and the attachments of the tags, taken from those waiting.

    Raises:
        ValueError: If there are more tags than attachments.
    """
    pieces, shown = split_at_tags(text, waiting)
    waiting[:] = left_of(waiting, shown)
    first, *rest = pieces
    if rest:  # what stands around a tag is one space
        inner = (piece.strip() for piece in rest[:-1])
        text = " ".join([first.rstrip(), *inner, rest[-1].lstrip()])
    return plain(text.strip(), "a message"), shown
