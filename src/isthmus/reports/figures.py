"""Pictures that stand alone: SVG files for a README or a paper, readable in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from isthmus.reports.charts import COLOURS, Line, plotted, told

WIDTH, MARGIN = 640, 14
TITLE, LABEL, ROW, LETTER = 30, 22, 27, 6.9
"""Pixels: height of the title, of a line of text, of a bar's row; width of a letter."""
PANEL = 250
POINT, LINE = 16, 15
"""Pixels between a panel's edge and its outermost point; height of a text beside a point."""
LEAST = 90
"""Pixels of the longest bar, at least."""
VALUES, NARROW = 126, 480
"""Pixels on the right of bars, for values; and the width of a picture below which intervals are
drawn and not written."""
STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1b1f24}"
    ".title{font-weight:650;font-size:15px}.paper{fill:#fff}.grid{stroke:#d7dbe0}.soft{opacity:.7}"
    ".line,.thin{fill:none;stroke-width:2.5}.thin{stroke-width:1.5}.bar{fill:none;stroke-width:1.4}"
    ".above{paint-order:stroke;stroke:#fff;stroke-width:4px}"
    ".whisker{fill:none;stroke:#1b1f24;stroke-width:1.4}"
    "@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.paper{fill:#15181c}.grid{stroke:#39414b}"
    ".whisker{stroke:#e4e7eb}.above{stroke:#15181c}}"
)


@dataclass(frozen=True)
class Bar:
    """A bar with its interval.

    Attributes:
        name: What stands before it.
        value: A share.
        interval: Its lower and upper end.
        aside: Whether it is a control: drawn fainter.
    """

    name: str
    value: float
    interval: tuple[float, float]
    aside: bool = False


def curves(
    title: str,
    panels: Mapping[str, Mapping[str, Line]],
    *,
    below: str,
    at: Sequence[float] = (),
    width: int = WIDTH,
    most: float | None = 1.0,
    percent: bool = True,
) -> str:
    """Panels of curves side by side, of shares from 0 to 1 if not told otherwise, with one legend.

    Args:
        title: What stands above all of them.
        panels: By what stands above each of them; a name has one colour in all panels.
        below: What the horizontal axes are.
        at: Where they have their numbers; empty for where points are.
        width: Of the picture, in pixels.
        most: Where the vertical axes end; None for the highest point of each panel.
        percent: Whether the vertical axes are of shares.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    thin = {name for lines in panels.values() for name, line in lines.items() if line.thin}
    wide = (width - 2 * MARGIN) // max(1, len(panels))
    top = MARGIN + TITLE
    parts = []
    for number, (label, lines) in enumerate(panels.items()):
        left = MARGIN + number * wide
        places = at or sorted({x for line in lines.values() for x, _ in line.points})
        own = plotted(
            {name: lines.get(name, Line(())) for name in names},
            most=most,
            at=places,
            size=(wide, PANEL),
            percent=percent,
        )
        parts.append(_text(left + wide / 2, top + 14, label, 'text-anchor="middle"'))
        parts.append(f'<g transform="translate({left} {top + LABEL})">{own}</g>')
    foot = top + LABEL + PANEL + 10
    parts.append(_text(width / 2, foot, below, 'text-anchor="middle" class="soft"'))
    legend, height = _legend(names, thin, foot + 14, width)
    described = "; ".join(f"{label}: {told(lines)}" for label, lines in panels.items())
    return _whole(title, described, [*parts, legend], (width, height))


def bars(
    title: str,
    rows: Sequence[Bar],
    levels: Mapping[str, float],
    *,
    below: str = "",
    width: int = WIDTH,
) -> str:
    """Bars of shares from 0 to 1, one under the other, with levels to compare them with.

    Args:
        title: What stands above them.
        rows: The bars.
        levels: Shares by name, such as chance, drawn through all bars.
        below: What is said under them.
        width: Of the picture, in pixels.
    """
    names = max((len(row.name) for row in rows), default=0)
    values = VALUES if width >= NARROW else VALUES // 3
    left, right = MARGIN + 16 + round(LETTER * names), width - MARGIN - values
    above = 0 if right - left >= LEAST else LABEL - 4  # names stand above bars that have no room
    left = MARGIN + 16 if above else left
    top, each = MARGIN + TITLE, ROW + above
    foot = top + each * len(rows)

    def at(share: float) -> float:
        return left + share * (right - left)

    parts, names_above = [], []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if width >= NARROW else (0.0, 0.5, 1.0):
        x = at(share)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{foot}"/>')
        parts.append(_text(x, foot + 16, f"{share:.0%}", 'text-anchor="middle" class="soft"'))
    for number, row in enumerate(rows):
        y, (low, high) = top + each * number + above, row.interval
        colour = f'fill="{COLOURS[7 if row.aside else 0]}"'
        if above:
            names_above.append(_text(left, y, row.name, 'class="above"'))
        else:
            parts.append(_text(left - 8, y + 18, row.name, 'text-anchor="end"'))
        wide = at(row.value) - left
        parts.append(
            f'<rect x="{left}" y="{y + 5}" width="{wide:.1f}" height="{ROW - 10}" rx="2" {colour}/>'
        )
        middle = y + ROW / 2
        parts.append(
            f'<path class="whisker" d="M{at(low):.1f} {middle}H{at(high):.1f}'
            f'M{at(low):.1f} {middle - 4}v8M{at(high):.1f} {middle - 4}v8"/>'
        )
        written = f" ({100 * low:.0f} to {100 * high:.0f})" if width >= NARROW else ""
        value = f"{row.value:.0%}{written}"
        parts.append(_text(right + 10, y + 18, value))
    for number, share in enumerate(levels.values(), 1):
        x = at(share)
        parts.append(
            f'<line class="thin" stroke="{COLOURS[number]}" stroke-dasharray="5 3" x1="{x:.1f}" '
            f'x2="{x:.1f}" y1="{top}" y2="{foot}"/>'
        )
    parts += names_above  # over the levels, which would strike them through
    parts.append(_text(width - MARGIN, foot + 36, below, 'text-anchor="end" class="soft"'))
    legend, height = _legend(
        ["", *levels], set(levels), foot + (22 if width >= NARROW else 42), width
    )
    described = "; ".join(f"{row.name}: {row.value:.3g}" for row in rows)
    return _whole(title, described, [*parts, legend], (width, height))


def scatter(
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, str]]]],
    *,
    below: str,
    width: int = WIDTH,
) -> str:
    """Panels of points in a plane side by side, all at one scale around their own middle.

    Args:
        title: What stands above all of them.
        panels: By what stands above each of them: groups by name, each of points (x, y) with what
            is written beside them. A group has one colour in all panels.
        below: What the plane is.
        width: Of the picture, in pixels.
    """
    names = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    wide = (width - 2 * MARGIN) // max(1, len(panels))
    top, parts, told_of = MARGIN + TITLE, [], []
    middles = {label: _middle(groups) for label, groups in panels.items()}
    reach = max(
        (
            max(abs(x - middles[label][0]), abs(y - middles[label][1]))
            for label, groups in panels.items()
            for points in groups.values()
            for x, y, _ in points
        ),
        default=1.0,
    )
    scale = (min(wide, PANEL) / 2 - POINT) / (reach or 1.0)
    for number, (label, groups) in enumerate(panels.items()):
        left, (across, up) = MARGIN + number * wide, middles[label]
        parts.append(_text(left + wide / 2, top + 14, label, 'text-anchor="middle"'))
        parts.append(
            f'<rect class="grid" fill="none" x="{left + 4}" y="{top + LABEL}" width="{wide - 8}" '
            f'height="{PANEL}" rx="4"/>'
        )
        written, dots = [], []
        for name, points in groups.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            for x, y, text in points:
                at = left + wide / 2 + scale * (x - across)
                down = top + LABEL + PANEL / 2 - scale * (y - up)
                dots.append(f'<circle cx="{at:.1f}" cy="{down:.1f}" r="4.5" fill="{colour}"/>')
                written.append((at, down, text))
        parts += [*_beside(written, left + wide / 2), *dots]
        told_of.append(f"{label}: " + ", ".join(f"{len(p)} of {n}" for n, p in groups.items()))
    foot = top + LABEL + PANEL + 18
    parts.append(_text(width / 2, foot, below, 'text-anchor="middle" class="soft"'))
    legend, height = _legend(names, set(), foot + 8, width)
    return _whole(title, "; ".join(told_of), [*parts, legend], (width, height))


def _middle(groups: Mapping[str, Sequence[tuple[float, float, str]]]) -> tuple[float, float]:
    """The middle of a panel's points."""
    points = [point for own in groups.values() for point in own] or [(0.0, 0.0, "")]
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


def _beside(written: Sequence[tuple[float, float, str]], middle: float) -> list[str]:
    """Texts beside their points, towards the middle, moved down where they would overlap.

    A text that was moved has a line from its point.
    """
    lines, texts = [], []
    for toward, step in (("start", 1), ("end", -1)):
        here = [p for p in written if p[2] and (p[0] <= middle) == (step > 0)]
        aside = max((step * x for x, _, _ in here), default=0) * step + 14 * step
        lowest = -math.inf
        for x, y, text in sorted(here, key=lambda own: own[1]):
            lowest = max(y + 4, lowest + LINE)
            line = f'd="M{x:.1f} {y:.1f}L{aside - 3 * step:.1f} {lowest - 4:.1f}"'
            lines.append(f'<path class="whisker soft" stroke-width="1" {line}/>')
            texts.append(_text(aside, lowest, text, f'text-anchor="{toward}"'))
    return [*lines, *texts]


def _text(x: float, y: float, text: str, how: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'


def _legend(names: Sequence[str], thin: set[str], top: float, width: int) -> tuple[str, int]:
    """Names beside their colours, in as many lines as they need; and where they end."""
    parts, x, y = [], float(MARGIN), top + 14
    for number, name in enumerate(names):
        wide = 30 + LETTER * len(name) + 14
        if not name:
            continue
        if x + wide > width - MARGIN and x > MARGIN:
            x, y = float(MARGIN), y + LABEL
        dash = ' stroke-dasharray="5 3"' if name in thin else ""
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<line class="line" x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}" '
            f'stroke="{colour}"{dash}/>'
        )
        parts.append(_text(x + 28, y, name))
        x += wide
    return "".join(parts), round(y + MARGIN)


def _whole(title: str, described: str, parts: Sequence[str], size: tuple[int, int]) -> str:
    width, height = size
    heading = _text(MARGIN, MARGIN + 14, title, 'class="title"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc><style>{STYLE}</style>"
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
        f"{heading}{''.join(parts)}</svg>\n"
    )
