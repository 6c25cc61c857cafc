"""What becomes of an answer while parts of its images are covered, or all of them are grey.

It needs no attention: it is what the model computes, with other images (Zeiler and Fergus 2014,
arXiv 1311.2901, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.explaining.explanation import Covered
from isthmus.explaining.inputs import Inputs, logits_of, of_answer
from isthmus.explaining.pixels import cover, grey_for
from isthmus.model.media.base import Attachment, medium_of, visual_of
from isthmus.model.vlm import VisionLanguageModel

ROWS = 8
"""Covered images that are computed together."""


def greys(model: VisionLanguageModel, opened: Sequence[Attachment]) -> dict[int, Tensor]:
    """The pixels (3, H, W) of a grey image for each of those that are images, by their number."""
    found = {}
    for number, pixels in enumerate(opened):
        medium = medium_of(model, pixels)
        if isinstance(pixels, Tensor) and medium.name == "image" and not medium.varies:
            try:
                found[number] = grey_for(model.vision, pixels)
            except ConfigError:  # its pixels were handed in, and nobody knows what grey would be
                continue
    return found


def scored(
    model: VisionLanguageModel, inputs: Inputs, rows: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """As `of_answer`, for rows of images given by their visual tokens."""
    parts = [
        of_answer(logits_of(model, inputs, rows[start : start + ROWS]), inputs.answer)
        for start in range(0, len(rows), ROWS)
    ]
    return torch.cat([p for p, _ in parts]), torch.cat([g for _, g in parts])


def covered(
    model: VisionLanguageModel,
    inputs: Inputs,
    opened: Sequence[Attachment],
    visual: Sequence[Tensor],
    side: int,
) -> tuple[Covered | None, ...]:
    """What becomes of the answer while one region of one image is covered.

    Args:
        model: The model.
        inputs: The prompt and its answer.
        opened: The pixels of its images.
        visual: Their visual tokens.
        side: Regions in a row and in a column; 0 for none.

    Returns:
        For each image what was found; None for what is no image.
    """
    by = greys(model, opened) if side else {}
    whole, _ = scored(model, inputs, [visual]) if by else (torch.zeros(1), None)
    found: list[Covered | None] = []
    for number, pixels in enumerate(opened):
        if number not in by or not isinstance(pixels, Tensor):
            found.append(None)
            continue
        copies = cover(pixels.cpu(), by[number], side)
        changed = [own for some in torch.split(copies, ROWS) for own in visual_of(model, some)]
        rows = [[*visual[:number], own, *visual[number + 1 :]] for own in changed]
        logprobs, given = scored(model, inputs, rows)
        found.append(Covered(logprobs - whole, tuple(given.tolist()), side))
    return tuple(found)


def blanked(
    model: VisionLanguageModel,
    inputs: Inputs,
    opened: Sequence[Attachment],
    visual: Sequence[Tensor],
) -> Tensor | None:
    """The change (T,) of each token's log-probability with all images grey; None if there is none.

    Args:
        model: The model.
        inputs: The prompt and its answer.
        opened: The pixels of its images.
        visual: Their visual tokens.
    """
    by = greys(model, opened)
    if not by:
        return None
    changed = dict(zip(by, visual_of(model, list(by.values())), strict=True))
    grey = [changed.get(number, own) for number, own in enumerate(visual)]
    both, _ = scored(model, inputs, [visual, grey])
    return both[1] - both[0]
