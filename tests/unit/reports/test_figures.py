from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

from isthmus.reports.charts import COLOURS, Line
from isthmus.reports.figures import Bar, bars, curves, scatter

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


def test_curves_need_not_be_shares() -> None:
    some = Line([(0, -0.5), (8, 40.0)])
    drawn = curves("T", {"a": {"x": some}}, below="steps", most=None, percent=False)
    assert ">40<" in drawn
    assert "%<" not in drawn


def test_points_of_all_panels_have_one_scale_around_their_own_middle() -> None:
    near = {"x": [(5.0, 5.0, ""), (6.0, 5.0, "")]}
    far = {"y": [(0.0, 0.0, ""), (4.0, 0.0, "")], "x": [(2.0, 1.0, "")]}
    drawn = scatter("T", {"a": near, "b": far}, below="plane", width=640)
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5" fill="(.*?)"', drawn)
    xs = [float(x) for x, _, _ in found]
    assert abs((xs[3] - xs[2]) / (xs[1] - xs[0]) - 4) < 0.01
    assert abs((xs[0] + xs[1]) / 2 - (14 + 306 / 2)) < 0.1
    assert [colour for _, _, colour in found] == [COLOURS[n] for n in (0, 0, 1, 1, 0)]
    assert float(found[4][1]) < float(found[2][1])  # y points up


def test_texts_beside_points_do_not_overlap_and_are_plain() -> None:
    points = [(0.0, y / 100, f"<{y}>") for y in range(4)] + [(9.0, 0.0, "right"), (9.0, 1.0, "")]
    drawn = scatter("T", {"a": {"x": points}}, below="plane")
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start">&lt;', drawn)
    rows = sorted(float(y) for _, y in places)
    assert len(rows) == 4
    assert all(b - a >= 14 for a, b in pairwise(rows))
    assert 'text-anchor="end">right<' in drawn
    ElementTree.fromstring(drawn)


def test_a_point_alone_stands_in_the_middle() -> None:
    drawn = scatter("T", {"a": {"x": [(3.0, 3.0, "one")]}, "b": {}}, below="plane", width=640)
    assert re.search(r'<circle cx="167.0"', drawn)
