"""Tags that people write where attachments stand: `<image>`, `<video>`, and those of other kinds.

A record holds `<image>` alone, whatever the attachment is; its medium says which tokens stand
there. Pure: no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from isthmus.data.records import Medium
from isthmus.media.kinds import kind_of, kinds
from isthmus.prompts.prompt import IMAGE_TAG


def tags_of(media: Sequence[Medium]) -> dict[str, str]:
    """The tags that may stand in a text with these attachments, and the kind of each."""
    there = {kind_of(medium) for medium in media}
    own = {kind.tag: name for name, kind in kinds().items() if name in there}
    return {IMAGE_TAG: "image"} | own


def has_tag(text: str, media: Sequence[Medium]) -> bool:
    """Whether a tag stands in a text for one of the attachments.

    Example:
        >>> has_tag("A cat. <image>", []), has_tag("A <video>", [])
        (True, False)
    """
    return any(tag in text for tag in tags_of(media))


def split_at_tags(text: str, media: Sequence[Medium]) -> tuple[list[str], list[Medium]]:
    """The pieces of a text between its tags, and the attachments of the tags in their order.

    A tag takes the first attachment of its kind that is left; `<image>` takes the first of any kind
    where no image is left, as files of conversations about clips write it.

    Args:
        text: The text.
        media: The attachments, in the order of their tags; there may be more.

    Returns:
        One piece more than there are tags, and an attachment for each tag.

    Raises:
        ValueError: If there are more tags than attachments.
    """
    tags = tags_of(media)
    pieces = re.split("(" + "|".join(map(re.escape, tags)) + ")", text)
    waiting, taken = list(media), []
    for tag in pieces[1::2]:
        own = [m for m in waiting if kind_of(m) == tags[tag]]
        if not own and tag == IMAGE_TAG:
            own = waiting
        if not own:
            count = text.count(tag)
            if tag == IMAGE_TAG:
                raise ValueError(f"{tag} stands {count} times, with {len(media)} images left")
            there = sum(kind_of(medium) == tags[tag] for medium in media)
            raise ValueError(f"{tag} stands {count} times, and {there} of the kind are left")
        taken.append(own[0])
        waiting.pop(next(i for i, m in enumerate(waiting) if m is own[0]))
    return pieces[::2], taken


def left_of(media: Sequence[Medium], taken: Sequence[Medium]) -> list[Medium]:
    """The attachments that no tag has taken, in their order."""
    used = [id(medium) for medium in taken]
    left = []
    for medium in media:
        if id(medium) in used:
            used.remove(id(medium))
        else:
            left.append(medium)
    return left
