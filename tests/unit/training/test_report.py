from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from isthmus.reports.charts import Line, chart, ticks
from isthmus.training.log import RunLog, read_log
from isthmus.training.report import write_report


class Page(HTMLParser):
    """Tags that are open, and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href")]


def run(folder: Path) -> Path:
    log = RunLog(folder)
    for step in range(1, 41):
        log.write(
            {
                "step": step,
                "loss": 4.0 / step,
                "losses": {"pairs": 4.0 / step, "docs <b>": 5.0 / step},
                "lr": 1e-3,
                "samples_per_second": 30.0,
                "gates": {
                    "0": {"attention": step / 100, "ffw": 0.0},
                    "4": {"attention": 0.0, "ffw": step / 50},
                },
            }
        )
    log.write({"step": 20, "evaluation": {"pairs": 0.5}, "held_out_loss": 0.5})
    log.write({"step": 40, "evaluation": {"pairs": 0.75}, "held_out_loss": 0.75})
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "samples" / "a.jpg")
    answer = {"question": "What?", "answer": "<script>alert(1)</script>", "expected": "a & b"}
    images = ["samples/a.jpg", "../secret.jpg"]
    log.write({"step": 40, "answers": [{**answer, "images": images}]})
    log.write({"step": 7, "broken": [{"image": "x<y>.jpg", "why": "cut short"}]})
    log.close()
    return folder


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"of somebody else")
    text = write_report(run(tmp_path / "run")).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert len(page.fetched) == 1  # and the image outside of the run's folder is none of them
    assert page.fetched[0].startswith("data:image/jpeg;base64,")
    assert "&lt;script&gt;alert(1)" in text
    assert "a &amp; b" in text
    assert "x&lt;y&gt;.jpg: cut short" in text


def test_the_page_says_what_the_log_does(tmp_path: Path) -> None:
    text = write_report(run(tmp_path)).read_text(encoding="utf-8")
    assert "<dt>steps</dt><dd>40</dd>" in text
    assert "<dt>last loss</dt><dd>0.1</dd>" in text
    assert "<dt>last held-out loss</dt><dd>0.75</dd>" in text
    assert "<dt>best held-out loss</dt><dd>0.5 (step 20)</dd>" in text
    assert "docs &lt;b&gt;: from 5 to 0.125; pairs, held out: from 0.5 to 0.75" in text
    assert "layer 0: from 0.01 to 0.4; layer 4: from 0 to 0" in text


def test_an_empty_run_has_a_page_too(tmp_path: Path) -> None:
    assert "nothing was logged" in write_report(tmp_path).read_text(encoding="utf-8")


def test_lines_stand_where_their_numbers_do() -> None:
    drawn = chart("c", {"a": Line([(0, 0.0), (10, 5.0), (20, 10.0)])})
    (points,) = re.findall(r'class="line" points="([^"]*)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in p.split(",")] for p in points.split())
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1 > y2  # SVG counts downwards


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (3.2, 97), (-1, 1), (5, 5)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert all(float(f"{t:.2g}") == pytest.approx(t) for t in found if low != high)


def test_the_log_knows_json_and_forgets_half_lines(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write({"step": 1, "loss": float("nan")})
    log.write({"step": 2, "loss": 2.0})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # killed here
    assert [e["loss"] for e in read_log(tmp_path)] == [None, 2.0]
    again = RunLog(tmp_path, step=1)
    again.write({"step": 2, "loss": 1.5})
    again.write({"step": 2, "evaluation": {}, "held_out_loss": 1.0})
    again.close()
    assert [json.loads(x)["step"] for x in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        2,
        2,
    ]
    assert [e.get("loss") for e in read_log(tmp_path)] == [None, None, 1.5]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    run(tmp_path)
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    loss = [(e.step, e.value) for e in board.Scalars("train/loss")]
    assert loss == [(s, pytest.approx(4.0 / s)) for s in range(1, 41)]
    assert [e.value for e in board.Scalars("evaluation/pairs")] == [0.5, 0.75]
    assert board.Scalars("gates/4-ffw")[-1].value == pytest.approx(0.8)
