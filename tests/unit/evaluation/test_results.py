from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from isthmus.errors import ConfigError
from isthmus.evaluation import controls
from isthmus.evaluation.answering import worth
from isthmus.evaluation.arms import Arm, plan
from isthmus.evaluation.metrics import mcnemar, wilson
from isthmus.evaluation.records import Answered
from isthmus.evaluation.report import curves, image_name, write_report
from isthmus.evaluation.results import Results, row_of
from isthmus.evaluation.task import Item, Task
from isthmus.evaluation.tasks.episodes import fast_binding
from isthmus.evaluation.tasks.text import parity
from isthmus.prompts.prompt import Example

TASK = Task(
    "t", "label", [Item(str(i), Example((), "?", "ab"[i % 2])) for i in range(8)], chance=0.5
)


def said(arm: Arm, parsed: str, usual: str | None = None) -> list[Answered]:
    """Records of an arm from what it said, a letter each; a dot is no answer."""
    return [
        Answered(
            arm=arm.id,
            item=str(i),
            prompt=f"<b>{i}",
            images=(),
            text=p,
            parsed=None if p == "." else p,
            expected="ab"[i % 2],
            right=float(p == "ab"[i % 2]),
            prompt_tokens=10,
            cached_tokens=4,
            new_tokens=2,
            seconds=0.25,
            usual=usual,
        )
        for i, p in enumerate(parsed)
    ]


def test_a_row_sums_its_records_up() -> None:
    first, second = Arm("t", 0), Arm("t", 4)
    before, after = said(first, "abab...."), said(second, "ababba..", usual="a")
    row = row_of(TASK, second, after, first=(first, before))
    assert (row.n, row.accuracy, row.interval) == (8, 0.5, wilson(4, 8))
    assert (row.unparsed, row.accuracy_parsed) == (0.25, 4 / 6)
    assert (row.majority, row.majority_of_shots) == (("a", 0.5), 0.5)
    assert (row.prompt_tokens, row.cached_tokens, row.new_tokens, row.seconds) == (80, 32, 16, 2.0)
    assert row.compared is not None
    assert (row.compared.only_first, row.compared.only_this, row.compared.p) == (0, 0, 1.0)
    better = row_of(TASK, second, said(second, "abababab"), first=(first, before))
    assert better.compared is not None
    assert (better.compared.only_first, better.compared.only_this) == (0, 4)
    assert better.compared.difference == 0.5
    assert better.compared.p == mcnemar(0, 4)
    assert better.compared.interval[0] > 0


def test_answers_that_are_partly_right_get_no_mcnemar() -> None:
    first, second = Arm("t", 0), Arm("t", 4)
    partly = [replace(r, right=0.3) for r in said(second, "a" * 8)]
    row = row_of(TASK, second, partly, first=(first, said(first, "a" * 8)))
    assert row.interval == (pytest.approx(0.3), pytest.approx(0.3))
    assert row.compared is not None
    assert row.compared.p is None


def test_the_table_in_markdown() -> None:
    first, second = Arm("t", 0), Arm("t", 4, "cot", 1, "blank")
    records = said(first, "abab....")
    rows = (
        row_of(TASK, first, records),
        row_of(TASK, second, said(second, "bbbbbbbb", usual="a"), first=(first, records)),
    )
    lines = Results(rows, left_out={"t, 0 shots, cot": "no | sense"}).markdown().splitlines()
    assert lines[0] == "### t"
    assert lines[4] == (
        "| 0 | none |  | 0 | 8 | 50.0% | 21.5% to 78.5% | 50.0% | 50.0% (a) |  | 50.0% | 100.0% "
        "|  |  | 80 (32) | 16 | 2.0 |"
    )
    assert lines[5].startswith(
        "| 4 | cot | blank | 1 | 8 | 50.0% | 21.5% to 78.5% | 50.0% | 50.0% (a) | 50.0% | 0.0% "
        "| 50.0% | +0.0 ("
    )
    assert "| 1.0000 (2, 2) | 80 (32) | 16 | 2.0 |" in lines[5]
    assert lines[-1] == "- t, 1 arms: no | sense"
    assert {line.replace("\\|", "").count("|") for line in lines[2:6]} == {18}


@pytest.mark.parametrize(
    ("kind", "metric", "answers", "got", "value"),
    [
        ("number", "accuracy", ["5"], "5.0", 1.0),
        ("text", "accuracy", ["cup", "mug"], "Mug", 1.0),
        ("text", "characters", ["Mug"], "mug", 0.0),
        ("text", "characters", ["Mug"], " Mug", 1.0),
        ("text", "vqa", ["cat"] * 2 + ["dog"] * 8, "a cat", 0.6),
        ("text", "accuracy", ["cup"], None, 0.0),
    ],
)
def test_what_an_answer_is_worth(
    kind: str, metric: str, answers: list[str], got: str | None, value: float
) -> None:
    accepted = tuple(answers if metric == "vqa" else answers[1:])
    item = Item("1", Example((), "?", answers[0]), accepted=accepted)
    task = Task("t", kind, [item], metric=metric)  # type: ignore[arg-type]
    assert worth(task, item, got) == pytest.approx(value)


# --- Controls ---------------------------------------------------------------------------------

SHOTS = [Example((), f"{i}?", str(i), f"because {i}") for i in range(6)]


def test_shuffling_keeps_answers_with_their_rationales() -> None:
    mixed = controls.shuffled(SHOTS, 0)
    assert [s.question for s in mixed] == [s.question for s in SHOTS]
    assert sorted(s.answer or "" for s in mixed) == [str(i) for i in range(6)]
    assert all(s.rationale == f"because {s.answer}" for s in mixed)
    assert [s.answer for s in mixed] != [s.answer for s in SHOTS]
    assert controls.shuffled(SHOTS, 0) == mixed
    assert controls.shuffled(SHOTS, 0, "other") != mixed


def test_every_order_of_two_is_as_likely() -> None:
    kept = sum(controls.shuffled(SHOTS[:2], 0, str(i))[0].answer == "0" for i in range(400))
    assert 160 < kept < 240


@pytest.mark.parametrize("text", ["", "(3+1)=4.", "a" * 997])
def test_filler_is_as_long_as_what_it_stands_for(text: str) -> None:
    assert len(text) <= len(controls.filler(text, len)) <= len(text) + 1
    assert set(controls.filler(text, len)) <= set(" .")
    words = controls.filler("two words", lambda t: len(t.split()))
    assert words == " . ."


def test_grey_images_keep_their_size() -> None:
    example = controls.blanked(Example([Image.new("RGB", (5, 3), "red")], "?", "x"))
    assert example.images[0].size == (5, 3)
    assert example.images[0].getcolors() == [(15, (128, 128, 128))]


# --- Arms -------------------------------------------------------------------------------------


def test_arms_that_make_no_sense_are_left_out_with_a_reason() -> None:
    tasks = [parity(n=2), fast_binding(n=2, shots=4)]
    arms, left_out = plan(tasks, [0, 4], ["none", "cot", "zero-cot"], [0], list(controls_of()))
    assert [a.id.removesuffix(", seed 0") for a in arms if not a.control] == [
        "parity, 0 shots, none",
        "parity, 4 shots, none",
        "parity, 4 shots, cot",
        "parity, 0 shots, zero-cot",
        "fast-binding-2, 0 shots, none",
        "fast-binding-2, 4 shots, none",
        "fast-binding-2, 0 shots, zero-cot",
    ]
    assert [a.control for a in arms if a.task == "parity" and a.reasoning == "cot"] == [
        "",
        "shuffled",
        "filler",
        "answer-first",
    ]
    assert "have no rationales" in left_out["fast-binding-2, 4 shots, cot, seed 0"]
    assert len(arms) + len(left_out) == 2 * 3 * 2 * 6


def controls_of() -> list[str]:
    from isthmus.evaluation.arms import CONTROLS

    return list(CONTROLS)


def test_nothing_to_run_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to run: no task"):
        plan([], [0], ["none"], [0], [])


# --- The page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_questions_beside_what_every_arm_said(tmp_path: Path) -> None:
    first, second = Arm("t", 0), Arm("t", 4, "cot")
    shown = tmp_path / "images" / image_name("hash-of-the-question")
    shown.parent.mkdir()
    Image.new("RGB", (4, 4), "red").save(shown)
    before = [
        replace(r, prompt="<image>Q <script>?", images=("hash-of-the-question",), question="Q?")
        for r in said(first, "abab....")
    ]
    after = [
        replace(
            r,
            prompt="<image>shot<image>Q?",
            images=("shot", "hash-of-the-question"),
            rationale="since <x>",
        )
        for r in said(second, "bbbbbbbb")
    ]
    rows = (row_of(TASK, first, before), row_of(TASK, second, after, first=(first, before)))
    text = write_report(Results(rows, {"model": "a<b"}), [*before, *after], tmp_path).read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.tags.count("img") == 8
    assert "<title>a&lt;b: evaluation</title>" in text
    assert "Q &lt;script&gt;?⟦a⟧" in text
    assert "since &lt;x&gt;" in text
    assert text.count('class="said right"') == 4 + 4
    assert text.count("(no answer found)") == 4


def test_curves_average_seeds_question_by_question() -> None:
    zero = [Arm("t", 0, seed=s) for s in (0, 1)]
    four = [Arm("t", 4, seed=s) for s in (0, 1)]
    texts = {zero[0]: "abab....", zero[1]: "........", four[0]: "abababab", four[1]: "abababab"}
    by_arm = {arm.id: said(arm, text) for arm, text in texts.items()}
    rows = [row_of(TASK, arm, by_arm[arm.id]) for arm in texts]
    drawn = curves("t", rows, by_arm)
    assert "direct: from 0.25 to 1" in drawn
    assert "chance: from 0.5 to 0.5" in drawn
    assert drawn.count('class="bar"') == 2
