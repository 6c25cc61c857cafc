"""Pieces of pages: numbers, tables, images, gauges. Pure: no torch."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Shown = Callable[[str], str]
"""The `src` of a kept image, given its name; empty where it is not there."""
Renderer = Callable[[Mapping[str, Any], Shown], str]
"""Shows the values of one part."""
LONG = 28
"""Letters from which on a cell of a table may be broken into lines."""
COLOURS = {"low": "#2a9d6e", "notable": "#c99a1a", "severe": "#c43d5c", "not measured": "#7a7a7a"}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a reader wants it.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3%', '-')
    """
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def interval(bounds: Sequence[float] | None) -> str:
    """An interval of shares.

    Example:
        >>> interval((0.1, 0.254)), interval(None)
        ('10 to 25', '')
    """
    return "" if bounds is None else f"{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with a few digits.

    Example:
        >>> number(0.123456), number(None)
        ('0.123', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def text(*sentences: str) -> str:
    """A paragraph of plain sentences; empty ones are left out."""
    told = " ".join(s for s in sentences if s)
    return f"<p>{escape(told)}</p>" if told else ""


def note(sentence: str) -> str:
    """A small remark."""
    return f'<p class="label">{escape(sentence)}</p>' if sentence else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on a phone; cells are plain text."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table">{whole}</div>'


def _cell(cell: object) -> str:
    """A cell; only long ones are broken into lines, so that numbers stay whole on a phone."""
    told = str(cell)
    long = ' class="long"' if len(told) > LONG else ""
    return f"<td{long}>{escape(told)}</td>"


def folded(summary: str, inside: str) -> str:
    """Something that is opened with a click."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if inside else ""


def figure(sources: Sequence[str], caption: str) -> str:
    """Images side by side with a line under them; nothing where none is there."""
    shown = "".join(f'<img src="{src}" alt="">' for src in sources if src)
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>" if shown else ""


def gauge(name: str, value: float | None, word: str, sentence: str) -> str:
    """A bar from 0 to 1 with a word and a sentence."""
    wide = 0 if value is None else max(2, round(100 * value))
    colour = COLOURS[word]
    return (
        f'<div class="gauge"><h3>{escape(name)} <b style="color:{colour}">{escape(word)}</b></h3>'
        f'<div class="bar-of"><i style="width:{wide}%;background:{colour}"></i></div>'
        f"{text(sentence)}</div>"
    )


def embedded(path: Path) -> str:
    """A PNG file as a data URI; empty if there is none.

    Example:
        >>> embedded(Path("nothing.png"))
        ''
    """
    if not path.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
