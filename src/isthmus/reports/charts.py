"""Line charts as SVG text, for reports that need no network and no script.

A chart of a page takes its colours from the page; `figures` makes pictures that stand alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
DODGE = 3
"""Pixels between the interval bars of two lines at one place."""
COLOURS = ("#2f6fde", "#d9622b", "#2a9d6e", "#a04fc4", "#c99a1a", "#c43d5c", "#4a8fa8", "#7a7a7a")


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: (x, y), x rising.
        smooth: Whether a running mean is drawn over the faint points.
        marks: Whether each point gets a dot: few of them, each of its own weight.
        bounds: Lower and upper end of each point's interval, drawn as a bar; empty for none.
        thin: Whether it is a level to compare with, drawn thin and dashed.
    """

    points: Sequence[tuple[float, float]]
    smooth: bool = False
    marks: bool = False
    bounds: Sequence[tuple[float, float]] = ()
    thin: bool = False


def smoothed(
    points: Sequence[tuple[float, float]], share: float = 0.05
) -> list[tuple[float, float]]:
    """A centred running mean over a share of the points.

    Example:
        >>> smoothed([(0, 1.0), (1, 3.0), (2, 5.0)], share=1.0)
        [(0, 2.0), (1, 3.0), (2, 4.0)]
    """
    reach = max(1, int(len(points) * share / 2))
    result = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        result.append((x, sum(near) / len(near)))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range, at most so many and one.

    Example:
        >>> ticks(0.0, 9.7)
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= raw)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


def chart(
    title: str,
    lines: Mapping[str, Line],
    *,
    from_zero: bool = True,
    most: float | None = None,
    at: Sequence[float] = (),
) -> str:
    """A line chart as an SVG element with a legend.

    Args:
        title: What it shows; read out by screen readers.
        lines: By name; empty ones are left out.
        from_zero: Whether the vertical axis begins at 0.
        most: Where the vertical axis ends; None for the highest point.
        at: Where the horizontal axis has its numbers; empty for round ones.

    Returns:
        SVG text; a paragraph if there is nothing to draw.
    """
    drawn = {n: line for n, line in lines.items() if line.points}
    if not drawn:
        return f"<p>{escape(title)}: nothing was logged.</p>"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(told(drawn))}</desc>"
        f"{plotted(drawn, from_zero=from_zero, most=most, at=at)}</svg>{_legend(drawn)}"
    )


def plotted(
    lines: Mapping[str, Line],
    *,
    from_zero: bool = True,
    most: float | None = None,
    at: Sequence[float] = (),
    size: tuple[int, int] = (WIDTH, HEIGHT),
    percent: bool = False,
) -> str:
    """Lines with their axes, as the elements inside of an SVG of a size.

    Args:
        lines: By name; an empty one keeps its colour for other charts.
        from_zero: As for `chart`.
        most: As for `chart`.
        at: As for `chart`.
        size: Width and height in pixels.
        percent: Whether the vertical axis is of shares.
    """
    drawn, (width, height) = lines, size
    xs = [x for line in drawn.values() for x, _ in line.points]
    ys = [y for line in drawn.values() for _, y in line.points]
    ys += [end for line in drawn.values() for bound in line.bounds for end in bound]
    low, high = min(xs), max(xs)
    bottom, top = (min(0.0, *ys) if from_zero else min(ys)), max(ys)
    high = high if high > low else low + 1
    top = top if top > bottom else bottom + 1
    top = top if most is None else most

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low) / (high - low) * (width - LEFT - RIGHT)
        return across, height - BOTTOM - (y - bottom) / (top - bottom) * (height - TOP - BOTTOM)

    parts = []
    for y in ticks(bottom, top):
        _, up = place(low, y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>'
        )
        label = f"{100 * y:g}%" if percent else f"{y:g}"
        parts.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{label}</text>')
    for x in at or ticks(low, high, 8):
        across, _ = place(x, bottom)
        parts.append(f'<text x="{across:.1f}" y="{height - 8}" text-anchor="middle">{x:g}</text>')
    barred = [name for name, line in drawn.items() if line.bounds]
    for number, (name, line) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if line.thin or number >= len(COLOURS) else ""
        # lines with intervals stand side by side, so that no bar hides another
        shift = DODGE * (barred.index(name) - (len(barred) - 1) / 2) if name in barred else 0.0

        def aside(x: float, y: float, shift: float = shift) -> tuple[float, float]:
            across, up = place(x, y)
            return min(
                max(across + shift, LEFT + 1.0), width - RIGHT - 1.0
            ) if shift else across, up

        if line.smooth:
            parts.append(_path(line.points, aside, colour, dash, "faint"))
        shown = smoothed(line.points) if line.smooth else line.points
        parts.append(_path(shown, aside, colour, dash, "thin" if line.thin else "line"))
        for (x, _), (below, above) in zip(line.points, line.bounds, strict=False):
            (across, down), (_, up) = aside(x, below), aside(x, above)
            parts.append(
                f'<path class="bar" stroke="{colour}" d="M{across:.1f} {down:.1f}V{up:.1f}'
                f'M{across - 3:.1f} {down:.1f}h6M{across - 3:.1f} {up:.1f}h6"/>'
            )
        if line.marks:
            for point in line.points:
                across, up = aside(*point)
                parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="{colour}"/>')
    return "".join(parts)


def _path(
    points: Sequence[tuple[float, float]], place: object, colour: str, dash: str, kind: str
) -> str:
    """A polyline."""
    assert callable(place)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*p) for p in points))
    return f'<polyline class="{kind}" points="{path}" stroke="{colour}"{dash}/>'


def _legend(lines: Mapping[str, Line]) -> str:
    """The names beside their colours."""
    entries = "".join(
        f'<li><i style="border-top: 3px {"dotted" if line.thin else "solid"} '
        f'{COLOURS[i % len(COLOURS)]}"></i>{escape(name)}</li>'
        for i, (name, line) in enumerate(lines.items())
    )
    return f'<ul class="legend">{entries}</ul>'


def told(lines: Mapping[str, Line]) -> str:
    """What a chart says, in words."""
    return "; ".join(
        f"{name}: from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for name, line in lines.items()
    )
