"""What the connector `names` finds in images, and what each of its visual tokens is, in words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isthmus.model.backbones.stages import REGIONS


@dataclass(frozen=True)
class Seen:
    """What is in images.

    Attributes:
        vector: (B, width), where the whole image lies in the analysis.
        shares: (B, R, C), how likely each concept is in each region, the whole image first; each
            row sums to 1.
        trusted: (B,), trust in the analysis; the rest of it is the classifier's.
        there: (B, R - 1), how likely there is anything in each region. Of photographs nobody knows,
            and it is taken to be so.
    """

    vector: Tensor
    shares: Tensor
    trusted: Tensor
    there: Tensor


def token_labels(
    regions: int,
    pieces: int,
    others: int,
    region_pieces: int,
    region_others: int,
    gathered: int,
    *,
    letters: bool = False,
) -> list[str]:
    """A label for each visual token, in their order.

    Args:
        regions: Regions beside the whole image.
        pieces: Word pieces of the likeliest name.
        others: Next likeliest names.
        region_pieces: Word pieces of a region's name.
        region_others: Next likeliest names of a region.
        gathered: Free tokens that attention gathers.
        letters: Whether a printed word stands in place of the regions.

    Example:
        >>> token_labels(5, 2, 1, 1, 0, 1)[:6]
        ['name, piece 1', 'name, piece 2', 'how sure', 'next likeliest 1', 'top left: place', \
'top left: name']
    """
    found = [f"name, {_piece(n, pieces)}" if pieces > 1 else "name" for n in range(pieces)]
    found += ["how sure", *(f"next likeliest {n + 1}" for n in range(others))]
    places = []
    for region in REGIONS[1 : regions + 1]:
        names = [_piece(n, region_pieces) for n in range(region_pieces)]
        own = ["name"] if region_pieces == 1 else [f"name, {piece}" for piece in names]
        more = [f"next likeliest {n + 1}" for n in range(region_others)]
        places += [f"{region}: {part}" for part in ("place", *own, *more)]
    if letters:
        places = [f"printed word, piece {n + 1}" for n in range(len(places))]
    free = [f"gathered {n + 1}" for n in range(gathered)]
    return [*found, *places, "analysis", *free]


def _piece(number: int, of: int) -> str:
    return f"piece {number + 1}" if of > 1 else "piece"
