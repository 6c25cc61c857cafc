from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

from isthmus.reports.charts import COLOURS, Line
from isthmus.reports.figures import Bar, bars, curves

SVG = "{http://www.w3.org/2000/svg}"


def test_a_name_has_one_colour_in_all_panels() -> None:
    some = Line([(0, 0.5), (8, 0.9)], marks=True)
    drawn = curves("T", {"a": {"x": some}, "b": {"y": some, "x": some}}, below="shots")
    panels = [own for own in ElementTree.fromstring(drawn) if own.tag == f"{SVG}g"]
    colours = [{c.get("fill") for c in panel.iter(f"{SVG}circle")} for panel in panels]
    assert colours == [{COLOURS[0]}, {COLOURS[0], COLOURS[1]}]


def test_panels_share_the_width_and_their_axis_is_of_shares() -> None:
    some = Line([(0, 0.5), (8, 0.9)])
    drawn = curves("T", {name: {"x": some} for name in "abc"}, below="shots")
    places = re.findall(r"translate\(([\d.]+) ", drawn)
    steps = [float(b) - float(a) for a, b in pairwise(places)]
    assert steps == [204, 204]
    assert drawn.count(">100%<") == 3
    assert drawn.count(">8<") == 3


def test_what_is_said_is_plain_text() -> None:
    drawn = bars("a < b", [Bar("x & y", 0.5, (0.25, 0.75))], {"chance": 0.5})
    whole = ElementTree.fromstring(drawn)
    texts = [t.text for t in whole.iter(f"{SVG}text")]
    assert texts[0] == "a < b"
    assert "x & y" in texts
    assert "50% (25 to 75)" in texts


def test_a_whisker_is_as_long_as_its_interval() -> None:
    drawn = bars("T", [Bar("x", 0.5, (0.25, 0.75))], {})
    (low, high) = map(float, *re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)', drawn))
    ((left, wide),) = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)
    assert abs((high - low) - float(wide)) < 0.2
    assert abs((low + high) / 2 - float(left) - float(wide)) < 0.2


def test_long_names_stand_above_bars_that_have_no_room() -> None:
    name = "trigger alone, 9 votes, blank image"
    drawn = bars("T", [Bar(name, 0.5, (0.25, 0.75)), Bar("b", 1, (0.9, 1))], {}, width=340)
    rows = re.findall(r'<rect x="([\d.]+)" y="(\d+)" width="([\d.-]+)"', drawn)
    (left, first, half), (_, second, whole) = (tuple(map(float, own)) for own in rows)
    assert whole == 2 * half > 180
    ((x, y),) = re.findall(rf'<text x="([\d.]+)" y="([\d.]+)" class="above">{name}<', drawn)
    assert float(x) == left
    assert first - 10 < float(y) < first
    assert second - first > 40
    beside = bars("T", [Bar("at once", 0.5, (0.25, 0.75))], {}, width=340)
    assert 'text-anchor="end">at once<' in beside
