"""All evaluations of a file: records, card and pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from isthmus.config.evaluation import PictureConfig, SuiteConfig, suite_from_mapping
from isthmus.errors import ConfigError
from isthmus.evaluation import arms, pictures
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.card import card
from isthmus.evaluation.metrics import wilson
from isthmus.evaluation.pictures import picture, said
from isthmus.evaluation.records import Answered
from isthmus.evaluation.results import NO_CHAIN, Results, Row, row_of
from isthmus.evaluation.suite import evaluate_suite
from isthmus.evaluation.task import Item, Task
from isthmus.generation.engine import Engine
from isthmus.prompts.prompt import Example


def row(arm: Arm, right: int, n: int = 20, chance: float = 0.5) -> Row:
    nothing = (None, 0.0, right / n, None, None, None, 0, 0, 0, 0.0)
    return Row(arm, n, right / n, wilson(right, n), chance, ("dax", 0.55), *nothing)


def shots_curve() -> Results:
    rows = [row(Arm("t", 0), 10), row(Arm("t", 8), 18)]
    rows += [row(Arm("t", 8, control="shuffled"), 11), row(Arm("t", 0, control="blank"), 9)]
    return Results(tuple(rows), {"samples": 1, "weights": "abc"})


SUITE = suite_from_mapping(
    {
        "run": [
            {"name": "names", "tasks": ["t"], "shots": [0, 8], "about": "New names."},
            {"name": "votes", "tasks": ["t"], "reasoning": ["cot"], "samples": 9},
        ],
        "picture": [{"name": "shots", "title": "New names", "kind": "shots", "runs": ["names"]}],
    }
)


@pytest.mark.parametrize(
    ("arm", "samples", "told"),
    [
        (Arm("t", 0), 1, "at once"),
        (Arm("t", 3, "cot", control="filler"), 1, "dots for steps (3)"),
        (Arm("t", 0, "zero-cot", control="blank"), 1, "trigger alone, blank image"),
        (Arm("t", 3, "cot"), 9, "self-consistency (3)"),
        (Arm("t", 0, "zero-cot"), 9, "trigger alone, 9 votes"),
    ],
)
def test_what_an_arm_is_called(arm: Arm, samples: int, told: str) -> None:
    assert said(arm, samples) == told


def test_the_card_has_interval_baselines_and_controls_of_each_arm() -> None:
    told = card(SUITE, {"names": shots_curve()}, "isthmus eval MODEL")
    assert "`isthmus eval MODEL`" in told
    assert "![New names](shots.svg)" in told
    assert "tasks = t, shots = 0, 8, seed 0, weights abc" in told
    assert "votes" not in told  # not run yet
    assert "Wilson's, or a bootstrap's where answers can be partly right" in told
    head, _, zero, eight = (r.split(" | ") for r in told.split("\n") if r.startswith("| "))
    assert head[6:8] == ["shuffled labels", "blank image"]
    assert zero[1:5] == ["0", "20", "**50.0%**", "29.9 to 70.1"]
    assert zero[6:] == ["", "45.0% (25.8 to 65.8)", "50.0%", "55.0% (dax)", "0.0% |"]
    assert eight[6:8] == ["55.0% (34.2 to 74.2)", ""]


def test_the_card_says_where_questions_repeat_images() -> None:
    def told(shown: int, different: int, things: int = 0) -> str:
        task = {"n": 150, "images": shown, "different_images": different}
        task["different_classes"] = things
        results = replace(shots_curve(), config={"tasks": {"t": task}})
        return card(SUITE, {"names": results}, "")

    assert "The 150 questions of t are about 62 different images.\n" in told(150, 62)
    assert "about 62 different images of 31 classes.\n" in told(150, 62, 31)
    assert "are about 230 different images (600 are shown).\n" in told(600, 230)
    assert "The 150 questions" not in told(150, 150)


def test_an_arm_that_wrote_no_chain_is_said_to_be_missing() -> None:
    results = replace(shots_curve(), left_out={"t, 3 shots, auto-cot, seed 0": NO_CHAIN, "b": "c"})
    told = card(SUITE, {"names": results}, "")
    assert f"Left out: t, 3 shots, auto-cot, seed 0: {NO_CHAIN}." in told
    assert told.count("Left out") == 1


def test_kinds_of_question_and_capitals_have_their_own_figures() -> None:
    task = Task("t", "text", [Item("0", Example((), "?", "a"))], metric="characters")
    said = [("Cup", "cup", "word"), ("7", "7", "number"), ("8", "7", "number"), (None, "a", "word")]
    answered = [
        Answered("", str(i), "", (), "", got, right, float(got == right), 0, 0, 0, 0.0, group=kind)
        for i, (got, right, kind) in enumerate(said)
    ]
    found = row_of(task, Arm("t", 0), answered)
    assert (found.accuracy, found.accuracy_any_case) == (0.25, 0.5)
    assert [(g.name, g.n, g.accuracy, g.interval) for g in found.groups] == [
        ("word", 2, 0.0, wilson(0, 2)),
        ("number", 2, 0.5, wilson(1, 2)),
    ]
    assert found.groups[1].majority == ("7", 1.0)
    assert row_of(task, Arm("t", 0), answered[1:3]).groups == ()
    suite = suite_from_mapping({"run": [{"name": "a", "tasks": ["t"], "groups": True}]})
    told = card(suite, {"a": Results((found,))}, "")
    assert "| - number |  | 2 | 50.0% | 9.5 to 90.5 |  |  | 100.0% (7) |  |  |  |" in told
    assert "| 50.0% | 50.0% |" in told  # in any case; three wrong of six characters


def test_capitals_do_not_count_in_other_right_answers_either() -> None:
    items = [
        Item("0", Example((), "?", "colour"), accepted=("color",)),
        Item("1", Example((), "?", "grey"), accepted=("gray",)),
    ]
    task = Task("t", "text", items, metric="characters")
    answered = [
        Answered("", item, "", (), "", got, right, worth, 0, 0, 0, 0.0)
        for item, got, right, worth in (("0", "color", "colour", 1.0), ("1", "Gray", "grey", 0.0))
    ]
    found = row_of(task, Arm("t", 0), answered)
    assert (found.accuracy, found.accuracy_any_case) == (0.5, 1.0)


def test_a_curve_shows_every_control_and_chance() -> None:
    drawn = picture(SUITE.picture[0], {"names": shots_curve()})
    assert re.findall(r"<text[^>]*>([^<]*)</text>", drawn)[-4:] == [
        "right labels",
        "shuffled labels",
        "blank image",
        "chance",
    ]
    assert "right labels: from 0.5 to 0.9" in drawn
    assert "prefers-color-scheme:dark" in drawn


def of_two_tasks() -> Results:
    return Results((row(Arm("t", 0), 10), row(Arm("u", 0), 18)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("a", "b", "c")}, "3 labels for 2 tasks"),
        ({"labels": ("a", "a")}, 'the label "a" twice'),
        ({"runs": ("one", "again")}, '"at once" of t from two runs'),
        ({"kind": "ways"}, r"2 tasks \(t, u\): expected one"),
        ({"kind": "ways", "runs": ("names", "names-again")}, r'"at once" of t from two runs'),
        ({"kind": "ways", "runs": ("names",), "labels": ("a",)}, "has labels: expected none"),
    ],
)
def test_no_picture_leaves_results_out_or_mixes_them(changes: dict[str, Any], told: str) -> None:
    config = replace(PictureConfig(name="s", title="", kind="shots", runs=("one",)), **changes)
    two, one = of_two_tasks(), shots_curve()
    with pytest.raises(ConfigError, match=told):
        picture(config, {"one": two, "again": two, "names": one, "names-again": one})


@pytest.mark.parametrize("kind", ["shots", "ways"])
def test_a_picture_of_nothing_says_so(kind: Literal["shots", "ways"]) -> None:
    config = PictureConfig(name="s", title="Steps", kind=kind, runs=("none",))
    results = Results((), {"tasks": {"t": {}}}, {"t, 3 shots, auto-cot, seed 0": NO_CHAIN})
    assert ">every arm was left out<" in picture(config, {"none": results})


def test_a_task_without_an_arm_has_a_label_and_no_panel() -> None:
    config = PictureConfig(name="s", title="", kind="shots", runs=("a",), labels=("T", "U"))
    results = Results((row(Arm("u", 0), 10),), {"tasks": {"t": {}, "u": {}}})
    drawn = picture(config, {"a": results})
    assert (">U<" in drawn, ">T<" in drawn) == (True, False)


def test_bars_are_as_long_as_what_they_show_and_controls_come_last() -> None:
    steps = [Arm("t", 0), Arm("t", 3, "cot", control="filler"), Arm("t", 3, "cot")]
    first = Results(tuple(row(a, r, chance=0) for a, r in zip(steps, (4, 5, 16), strict=True)))
    votes = Results((row(Arm("t", 3, "cot"), 20, chance=0),), {"samples": 9})
    config = PictureConfig(name="s", title="Steps", kind="ways", runs=("names", "votes"))
    drawn = picture(config, {"names": first, "votes": votes})
    names = re.findall(r'text-anchor="end">([^<]*)<', drawn)
    assert names == ["at once", "worked examples (3)", "self-consistency (3)", "dots for steps (3)"]
    wide = [float(w) for w in re.findall(r'<rect x=[^>]* width="([\d.]+)"', drawn)]
    assert [round(w / wide[2], 2) for w in wide] == [0.2, 0.8, 1.0, 0.25]
    assert "80% (58 to 92)" in drawn
    assert "most common answer (dax)" in drawn


@pytest.fixture
def suite() -> SuiteConfig:
    names = {"name": "names", "tasks": ["fast-binding-2"], "shots": [0, 2], "limit": 6}
    parity = {"name": "odd", "tasks": ["parity"], "shots": [0], "limit": 4}
    shown = {"name": "shots", "title": "Names", "kind": "shots", "runs": ["names"]}
    return suite_from_mapping({"run": [names, parity], "picture": [shown]})


def test_runs_go_to_folders_of_their_own_and_are_not_run_again(
    engine: Engine, suite: SuiteConfig, tmp_path: Path
) -> None:
    results = evaluate_suite(engine, suite, out=tmp_path, limit=5, command="again")
    assert {name: [r.n for r in own.rows] for name, own in results.items()} == {
        "names": [5, 5],
        "odd": [4],
    }
    assert {own.config["model"] for own in results.values()} == {"object"}
    told = (tmp_path / "card.md").read_text()
    assert told.startswith("`again`")
    assert re.findall("limit = [0-9]+", told) == ["limit = 5", "limit = 4"]
    assert (tmp_path / "shots.svg").read_text().startswith("<svg ")
    kept = [json.loads(r) for r in (tmp_path / "odd" / "records.jsonl").read_text().splitlines()]
    assert len(kept) == 4
    scored = engine.statistics.scored_tokens
    assert evaluate_suite(engine, suite, out=tmp_path, limit=5) == results
    assert engine.statistics.scored_tokens == scored


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": ("countin",)}, 'the run "odd": .*did you mean "counting"'),
        ({"tasks": ("parity", "parity")}, 'the run "odd": two tasks have one name'),
        ({"select": "rice"}, 'the run "odd": .*did you mean "rices"'),
        ({"order": "best"}, "unknown order"),
        ({"calibrate": "pmi"}, "unknown calibration"),
        ({"template": "qq"}, 'unknown template "qq"'),
        ({"trigger": "step-by-stepp"}, "did you mean"),
        ({"controls": ("blanc",)}, 'did you mean "blank"'),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is(
    engine: Engine, suite: SuiteConfig, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    wrong = replace(suite.run[1], **changes)
    with pytest.raises(ConfigError, match=told):
        evaluate_suite(engine, replace(suite, run=(suite.run[0], wrong)), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_picture_that_cannot_be_drawn_is_said_before_anything_is(
    engine: Engine, suite: SuiteConfig, tmp_path: Path
) -> None:
    shown = replace(suite.picture[0], labels=("a", "b"))
    with pytest.raises(ConfigError, match="2 labels for 1 tasks"):
        evaluate_suite(engine, replace(suite, picture=(shown,)), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_every_way_and_every_control_has_a_name_in_pictures() -> None:
    assert set(pictures.WAYS) == set(arms.WAYS)
    assert set(pictures.CONTROLS) == set(arms.CONTROLS)
