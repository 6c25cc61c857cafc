"""Figures of the page: maps over a picture, strips and bars, as HTML and SVG without a script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

HOT, COLD = (255, 106, 0), (40, 120, 255)
"""Attention, or what speaks for the answer; and what speaks against it."""
DENSEST = 0.88
"""Opacity of a map's largest value: the picture can still be seen."""
JPEG_QUALITY = 88


def png(values: Tensor, largest: float | None = None) -> str:
    """A map (rows, columns) as a data URI, a pixel for each value, denser where it is larger.

    Values above 0 are orange, those below blue; 0 is clear.

    Args:
        values: The map.
        largest: The size that is densest; None for the largest of the map.
    """
    array = values.numpy().astype(np.float64)
    largest = float(np.abs(array).max()) if largest is None else largest
    density = np.clip(np.abs(array) / (largest or 1.0), 0, 1) * DENSEST * 255
    colour = np.where((array < 0)[..., None], COLD, HOT)
    pixels = np.concatenate([colour, density[..., None]], axis=-1).round().astype(np.uint8)
    return _uri(Image.fromarray(pixels, "RGBA"), "PNG")


def picture_uri(picture: Image.Image) -> str:
    """A picture as a data URI."""
    return _uri(picture, "JPEG")


def _uri(image: Image.Image, form: str) -> str:
    held = io.BytesIO()
    image.save(held, form, quality=JPEG_QUALITY)
    return f"data:image/{form.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"


def overlaid(
    number: int,
    values: Tensor,
    caption: str,
    *,
    small: bool = False,
    largest: float | None = None,
) -> str:
    """A map over an image of the page.

    Args:
        number: Of the image, whose picture the page's style holds as `--image-N`.
        values: (rows, columns).
        caption: A line under it.
        small: Whether it is one of many.
        largest: As for `png`.
    """
    kind = "over small" if small else "over"
    return (
        f'<figure class="{kind}"><div class="seen seen-{number}" role="img" '
        f'aria-label="{escape(_told(values))}">'
        f'<i style="background-image:url({png(values, largest)})"></i>'
        f"</div><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _told(values: Tensor) -> str:
    """Where a map is largest, in words."""
    rows, columns = values.shape
    at = int(values.abs().argmax())
    return (
        f"map of {rows} x {columns}; largest in row {at // columns + 1}, column {at % columns + 1}"
    )


def strip(values: Tensor, largest: float) -> str:
    """Values (rows, K) as small cells."""
    return f'<i class="strip" style="background-image:url({png(values, largest)})"></i>'


def bar(share: float, most: float) -> str:
    """A bar of a share beside its number."""
    wide = 100 * share / most if most > 0 else 0.0
    return f'<div class="bar-of"><i style="width:{wide:.1f}%"></i></div>'


def stacked_shares(shares: Mapping[str, float]) -> str:
    """Shares that sum to 1 as one bar in parts, with a legend."""
    colours = ("#d9622b", "#a04fc4", "#2a9d6e", "#c99a1a", "#8a93a0", "#4a8fa8", "#2f6fde")
    parts, legend = [], []
    for number, (name, share) in enumerate(shares.items()):
        colour = colours[number % len(colours)]
        parts.append(f'<i style="width:{100 * share:.2f}%;background:{colour}"></i>')
        legend.append(
            f'<li><i style="background:{colour}"></i>{escape(name)} <b>{100 * share:.1f}%</b></li>'
        )
    return (
        f'<div class="shares" aria-hidden="true">{"".join(parts)}</div>'
        f'<ul class="legend">{"".join(legend)}</ul>'
    )


def gate_chart(layers: Sequence[int], gates: Sequence[Mapping[str, float]]) -> str:
    """Bars from -1 to 1, those of each block side by side: tanh of its gates."""
    kinds = list(dict.fromkeys(kind for own in gates for kind in own))
    left, top, high, each = 44, 12, 160, 22
    group = each * len(kinds) + 18
    width = left + group * len(layers) + 12
    middle = top + high / 2
    parts = []
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        y = middle - value * high / 2
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    colours = ("#2f6fde", "#d9622b", "#2a9d6e")
    for number, (layer, own) in enumerate(zip(layers, gates, strict=True)):
        start = left + 9 + number * group
        for place, kind in enumerate(kinds):
            value = own.get(kind, 0.0)
            size = max(1.0, abs(value) * high / 2)
            y = middle - size if value >= 0 else middle
            parts.append(
                f'<rect x="{start + place * each}" y="{y:.1f}" width="{each - 4}" '
                f'height="{size:.1f}" rx="2" fill="{colours[place % 3]}"><title>layer {layer}, '
                f"{escape(kind)}: {value:.3f}</title></rect>"
            )
        at = start + each * len(kinds) / 2 - 2
        parts.append(f'<text x="{at}" y="{top + high + 18}" text-anchor="middle">{layer}</text>')
    legend = "".join(
        f'<li><i style="background:{colours[n % 3]}"></i>{escape(NAMES.get(kind, kind))}</li>'
        for n, kind in enumerate(kinds)
    )
    told = "; ".join(
        f"layer {layer}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in own.items())
        for layer, own in zip(layers, gates, strict=True)
    )
    return (
        f'<svg class="gates" viewBox="0 0 {width} {top + high + 26}" style="max-width:{width}px" '
        f'role="img"><title>Gates by layer</title><desc>{escape(told)}</desc>{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul>'
    )


NAMES = {"attention": "attention", "ffw": "feed-forward"}
"""What the kinds of gates are called."""


def word(word: str) -> str:
    r"""A word with its white space in sight.

    Example:
        >>> word(" cat\n"), word("\t")
        ('\u2423cat\u21b5', '\u21e5')
    """
    for space, sign in ((" ", "\u2423"), ("\n", "\u21b5"), ("\t", "\u21e5")):
        word = word.replace(space, sign)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in word) or "\u2205"


def times(change: float) -> str:
    """How many times as likely, of a change of a logarithm.

    Example:
        >>> times(0.0), times(-4.6)
        ('1 times as likely', '0.01 times as likely')
    """
    return f"{math.exp(change):.2g} times as likely"


def spread(count: int, most: int) -> list[int]:
    """Numbers from 0 to count, at most so many, evenly spread.

    Example:
        >>> spread(3, 5), spread(30, 4)
        ([0, 1, 2], [0, 10, 19, 29])
    """
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]
