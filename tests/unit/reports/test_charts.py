from __future__ import annotations

import re

from isthmus.reports.charts import DODGE, Line, chart
from isthmus.reports.page import page


def bars(drawn: str) -> list[tuple[float, float, float]]:
    found = re.findall(r'class="bar"[^>]* d="M([\d.]+) ([\d.]+)V([\d.]+)', drawn)
    return [(float(x), float(low), float(high)) for x, low, high in found]


def test_an_interval_stands_around_its_point() -> None:
    line = Line([(0, 0.5), (4, 0.75), (8, 1.0)], bounds=[(0.25, 0.75), (0.5, 1.0), (1.0, 1.0)])
    drawn = chart("c", {"a": line}, most=1.0)
    (points,) = re.findall(r'class="line" points="([^"]*)"', drawn)
    places = [tuple(float(v) for v in p.split(",")) for p in points.split()]
    half, three, one = (y for _, y in places)
    (_, low, high), (x, low2, high2), (_, low3, high3) = bars(drawn)
    assert x == places[1][0]
    assert (high, low2, high2) == (three, half, one)
    assert abs((low + high) / 2 - half) <= 0.1
    assert low3 == high3 == one


def test_bars_of_two_lines_do_not_hide_each_other() -> None:
    line = Line([(0, 0.5), (4, 0.5), (8, 0.5)], bounds=[(0.4, 0.6)] * 3)
    found = bars(chart("c", {"a": line, "b": line}))
    assert found[4][0] - found[1][0] == DODGE


def test_the_axis_ends_where_it_is_told_to_and_has_the_numbers_given() -> None:
    line = Line([(0, 0.1), (32, 0.2)])
    drawn = chart("c", {"a": line}, most=1.0, at=[0, 4, 32])
    assert re.findall(r'text-anchor="middle">([^<]*)<', drawn) == ["0", "4", "32"]
    assert re.findall(r'text-anchor="end">([^<]*)<', drawn)[-1] == "1"


def test_levels_are_dashed() -> None:
    drawn = chart("c", {"a": Line([(0, 1), (1, 1)]), "b": Line([(0, 1), (1, 1)], thin=True)})
    assert drawn.count("stroke-dasharray") == 1
    assert drawn.count("dotted") == 1


def test_a_page_is_whole_and_its_title_plain() -> None:
    made = page("a & <b>", "<p>x</p>", "p { color: red; }")
    assert "<title>a &amp; &lt;b&gt;</title>" in made
    assert made.index("prefers-color-scheme: dark") < made.index("color: red") < made.index("<p>x")
