"""Where an image stands in the text: its layout. Pure: no torch.

A layout is a sequence of token ids and places. A place is written with the id of `<image>`: it is
a hole that one visual token fills, or `<image>` itself where the visual tokens do not stand in the
text. Everything between the places (a separator after each tile, a newline after each row of them)
is an ordinary token.

    LLaVA, 576 patches               H x 576
    Flamingo                         I
    tiles (Idefics3, SmolVLM, ...)   s H..H s H..H n s H..H        s, n: token ids

The layout of an image is made with its pixels, so two images of one prompt may differ in length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from isthmus.errors import ConfigError

HOLE = -1
"""Stands in `Layout.ids` for a hole."""

IMAGE = -2
"""Stands in `Layout.ids` for the token `<image>`, which no visual token replaces."""


@dataclass(frozen=True)
class Layout:
    """The token ids and places of one image.

    Attributes:
        ids: Token ids, `HOLE` and `IMAGE`; at least one of them is a place.

    Raises:
        ConfigError: If there is no place, or an id is negative and neither constant.

    Example:
        >>> layout = Layout((7, HOLE, HOLE, 7))
        >>> layout.holes, layout.places, layout.written(99)
        (2, 2, [7, 99, 99, 7])
    """

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.places or min(self.ids) < IMAGE:
            raise ConfigError(
                f"Layout({self.ids!r}): expected token ids of 0 or more and at least one place, "
                f"HOLE ({HOLE}) or IMAGE ({IMAGE})"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def holes(self) -> int:
        """How many visual tokens stand in the text."""
        return self.ids.count(HOLE)

    @property
    def places(self) -> int:
        """How often the id of `<image>` stands in the text."""
        return self.ids.count(HOLE) + self.ids.count(IMAGE)

    @property
    def front(self) -> int:
        """How many ids stand before the first place."""
        return next(i for i, token in enumerate(self.ids) if token < 0)

    def written(self, image_id: int) -> list[int]:
        """The token ids, each place written with the id of `<image>`."""
        return [image_id if token < 0 else token for token in self.ids]


def filled(tokens: int) -> Layout:
    """The layout of an image whose visual tokens stand in the text and nothing between them.

    Example:
        >>> filled(3).ids
        (-1, -1, -1)
    """
    return Layout((HOLE,) * tokens)


def expand(ids: Sequence[int], layouts: Sequence[Layout], image_id: int) -> list[int]:
    """Token ids with each `<image>` replaced by its image's layout.

    Args:
        ids: Token ids; `<image>` stands once for each image.
        layouts: The images' layouts, in order.
        image_id: The id of `<image>`.

    Example:
        >>> expand([1, 9, 2, 9], [Layout((HOLE, 5)), Layout((IMAGE,))], 9)
        [1, 9, 5, 2, 9]
    """
    own = iter(layouts)
    return [token for i in ids for token in (next(own).written(image_id) if i == image_id else [i])]


def leading(ids: Sequence[int], layouts: Sequence[Layout], image_id: int) -> int:
    """How many expanded ids belong to images that stand before any text.

    Args:
        ids: As `expand` makes them.
        layouts: The layouts of the images.
        image_id: The id of `<image>`.

    Example:
        >>> leading([5, 9, 9, 2, 9], [Layout((5, HOLE, HOLE)), Layout((HOLE,))], 9)
        3
    """
    at = 0
    for layout in layouts:
        if list(ids[at : at + len(layout)]) != layout.written(image_id):
            break
        at += len(layout)
    return at


def starts(ids: Sequence[int], layouts: Sequence[Layout], image_id: int) -> list[int]:
    """Where each image's layout begins in expanded ids.

    Args:
        ids: As `expand` makes them.
        layouts: The layouts of the images.
        image_id: The id of `<image>`.

    Example:
        >>> starts([1, 5, 9, 9, 2, 9], [Layout((5, HOLE, HOLE)), Layout((IMAGE,))], 9)
        [1, 5]
    """
    found: list[int] = []
    at = 0
    for layout in layouts:
        start = ids.index(image_id, at) - layout.front
        found.append(start)
        at = start + len(layout)
    return found


def whole_images(ids_seen: int, layouts: Sequence[Layout]) -> int:
    """How many images lie in whole within the first so many ids that belong to images.

    Example:
        >>> whole_images(5, [Layout((HOLE,) * 3), Layout((HOLE,) * 3)])
        1
    """
    return bisect_right(list(accumulate(len(layout) for layout in layouts)), ids_seen)
