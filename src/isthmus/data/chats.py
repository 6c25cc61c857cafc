"""Conversations as others write them, made into turns. Pure: no torch.

LLaVA's (`conversations` of `from` and `value`) and those of OpenAI and Transformers (`messages` of
`role` and `content`, a string or typed parts). `<image>` in a question says with which turn an
image is shown; it is taken out, since the images of a turn stand before its question (LLaVA's
own code moves them there too). Without any such tag all images are shown with the first turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isthmus.data.interleaved import plain
from isthmus.data.records import Medium
from isthmus.prompts.prompt import IMAGE_TAG, Example

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
VIDEO_TAG = "<video>"
Read = Callable[[Any], Medium]
"""Makes an image (or a clip) of what stands for it in a message."""


def turns(
    messages: Sequence[Any], media: Sequence[Medium], image: Read, clip: Read
) -> tuple[Example, ...]:
    r"""Question and answer in turn.

    Args:
        messages: The messages.
        media: Images and clips that the row lists beside the messages, in the order of the tags.
        image: Makes an image of a part that says where it is.
        clip: Makes a clip of a part that says where it is.

    Returns:
        The turns; text of a system message stands before the first question.

    Raises:
        ValueError: If questions and answers do not take turns, tags and images do not match, or
            a tag stands where no image can.

    Example:
        >>> chat = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A cat"}]
        >>> turns(chat, ["cat.jpg"], str, str)[0].question
        'Who?'
    """
    waiting = list(media)
    said: list[tuple[str, str, list[Medium]]] = []
    for message in messages:
        role, content = _message(message)
        text, shown = _content(content, waiting, image, clip)
        if shown and role != "user":
            raise ValueError(f"an image in a turn of the {role}: expected it in a user's")
        said.append((role, text, shown))
    if waiting:
        if len(waiting) < len(media):
            raise ValueError(
                f"{len(media) - len(waiting)} {IMAGE_TAG} tags and {len(media)} images"
            )
        first = next((shown for role, _, shown in said if role == "user"), None)
        if first is not None:
            first[:0] = waiting
    return _pairs(said)


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


def _content(
    content: Any, waiting: list[Medium], image: Read, clip: Read
) -> tuple[str, list[Medium]]:
    """Text of a message and what is shown with it; takes its images from those waiting."""
    if isinstance(content, str):
        clips = any(isinstance(medium, tuple) for medium in waiting)
        return take_tags(content, waiting, VIDEO_TAG if clips else None)
    texts: list[str] = []
    shown: list[Medium] = []
    for part in content:
        kind = part.get("type")
        # A table with one column for all kinds of parts holds None for the keys of the others
        inside = next((part[k] for k in (kind, "path", "url") if part.get(k) is not None), None)
        if kind == "text":
            texts.append(plain(inside, "a text"))
        elif kind not in ("image", "image_url", "video"):
            raise ValueError(f'a part of type "{kind}": expected text, image, image_url or video')
        elif inside is None and not waiting:
            raise ValueError(f"a part of type {kind} that says no path")
        elif inside is None:
            shown.append(waiting.pop(0))
        else:
            if kind == "image_url" and isinstance(inside, Mapping):
                inside = inside["url"]
            shown.append(clip(inside) if kind == "video" else image(inside))
    return "\n".join(texts).strip(), shown


def take_tags(
    text: str, waiting: list[Medium], video: str | None = None
) -> tuple[str, list[Medium]]:
    """A question without its tags, and the images of the tags, taken from those waiting.

    Raises:
        ValueError: If there are more tags than images.
    """
    tags = "|".join(re.escape(tag) for tag in (IMAGE_TAG, video) if tag)
    count = len(re.findall(tags, text))
    if count > len(waiting):
        raise ValueError(f"{IMAGE_TAG} stands {count} times, with {len(waiting)} images left")
    shown = waiting[:count]
    del waiting[:count]
    text = re.sub(rf"\s*(?:{tags})\s*", " ", text)
    return plain(text.strip(), "a message"), shown
