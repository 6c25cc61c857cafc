"""What each control changes in demonstrations and question. Pure: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from isthmus.demonstrations.calibrate import GREY
from isthmus.media.image import open_image
from isthmus.prompts.prompt import Example

DOTS = " ."


def blank(image: Any) -> Image.Image:
    """A grey image of the same size."""
    return Image.new("RGB", open_image(image).size, GREY)


def blanked(example: Example) -> Example:
    """The example with grey images."""
    return replace(example, images=tuple(blank(p) for p in example.images))


def shuffled(shots: Sequence[Example], seed: int, key: str = "") -> list[Example]:
    """Demonstrations whose answers, with their rationales, have changed places at random.

    Every order is equally likely, the true one too: what is kept is how often each answer is seen.

    Args:
        shots: The demonstrations.
        seed: Seed of the order.
        key: What the order is for: another one has another order.

    Example:
        >>> shots = [Example((), str(i), str(i)) for i in range(4)]
        >>> sorted(s.answer for s in shuffled(shots, 0))
        ['0', '1', '2', '3']
    """
    order = np.random.default_rng([seed, *key.encode()]).permutation(len(shots))
    return [
        replace(shot, answer=shots[int(i)].answer, rationale=shots[int(i)].rationale)
        for shot, i in zip(shots, order, strict=True)
    ]


def filler(text: str, count: Callable[[str], int]) -> str:
    """Dots of as many tokens as a text, or one more.

    Args:
        text: What it stands for.
        count: Tokens of a text; `len` counts characters.

    Example:
        >>> filler("(3+1)=4.", len)
        ' . . . .'
    """
    wanted = count(text)
    if wanted <= 0:
        return ""
    low, high = 0, 1
    while count(DOTS * high) < wanted:  # the number of tokens never falls with more dots
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(DOTS * middle) < wanted else (low, middle)
    return DOTS * high


def filled(shots: Sequence[Example], count: Callable[[str], int]) -> list[Example]:
    """Demonstrations with dots for rationales, each as long as its own."""
    return [
        replace(shot, rationale=filler(shot.rationale, count).strip()) if shot.rationale else shot
        for shot in shots
    ]


def answer_first(shots: Sequence[Example]) -> list[Example]:
    """Demonstrations that give the answer and then the rationale for it.

    Example:
        >>> answer_first([Example((), "2 + 2?", "4", "Two and two.")])[0].answer
        '4. Two and two.'
    """
    return [
        replace(shot, answer=f"{shot.answer}. {shot.rationale}", rationale=None)
        if shot.rationale
        else shot
        for shot in shots
    ]
