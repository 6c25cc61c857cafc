"""Results as a page: one HTML file with curves, tables and questions to look at."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from isthmus.evaluation.arms import CONTROLS, Arm
from isthmus.evaluation.metrics import bootstrap_mean, wilson
from isthmus.evaluation.records import IMAGES, Answered
from isthmus.evaluation.results import Results, Row, cells, headings, percent
from isthmus.files import write_text
from isthmus.reports.charts import Line, chart
from isthmus.reports.page import page

REPORT = "report.html"
EXAMPLES = 8
"""Questions of each task that are shown."""
MOST_TEXT = 4000
STYLE = """
body { max-width: 980px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; }
th, td { padding: 5px 9px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 3.5em; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
td:nth-child(6) { font-weight: 700; }
tr.control td { opacity: .8; }
.question { border-top: 1px solid var(--line); padding: 14px 0; display: flex; gap: 14px;
  flex-wrap: wrap; }
.question > div { flex: 1 1 300px; min-width: 0; }
.question img { width: 128px; height: 128px; object-fit: contain; background: var(--soft);
  border-radius: 6px; image-rendering: auto; }
.question p { margin: 0 0 4px; overflow-wrap: anywhere; }
.said { margin: 6px 0 0; padding: 6px 10px; border-left: 4px solid var(--line);
  background: var(--soft); border-radius: 0 6px 6px 0; }
.said.right { border-color: #2a9d6e; } .said.wrong { border-color: #c43d5c; }
.said.partly { border-color: #c99a1a; }
.said summary { cursor: pointer; font-size: .85rem; opacity: .8; } .said b { font-weight: 650; }
.said pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0 0;
  background: var(--paper); }
"""


def write_report(results: Results, answered: Sequence[Answered], folder: Path) -> Path:
    """Writes `report.html`.

    Args:
        results: What came out.
        answered: All records.
        folder: The evaluation's folder, which holds the images of the first questions.

    Returns:
        The page's path.
    """
    by_arm: dict[str, list[Answered]] = defaultdict(list)
    for record in answered:
        by_arm[record.arm].append(record)
    model = str(results.config.get("model", "model"))
    body = [f"<h1>{escape(model)}</h1>", _facts(results)]
    for task in dict.fromkeys(r.arm.task for r in results.rows):
        rows = [r for r in results.rows if r.arm.task == task]
        body += [f"<h2>{escape(task)}</h2>", curves(task, rows, by_arm), _table(rows)]
        body += [_controls(rows), _questions(rows, by_arm, folder)]
    if results.left_out:
        listed = "".join(f"<li>{escape(told)}</li>" for told in results.told_left_out())
        body.append(f"<h2>Left out</h2><ul>{listed}</ul>")
    text = page(f"{model}: evaluation", "".join(body), STYLE)
    target = folder / REPORT
    write_text(target, text)
    return target


def _facts(results: Results) -> str:
    """What was run and what it cost."""
    tokens = sum(r.prompt_tokens for r in results.rows)
    cached = sum(r.cached_tokens for r in results.rows)
    facts = {
        "arms": str(len(results.rows)),
        "questions asked": f"{sum(r.n for r in results.rows):,}",
        "prompt tokens": f"{tokens:,}",
        "of these cached": percent(cached / tokens if tokens else 0.0),
        "new tokens": f"{sum(r.new_tokens for r in results.rows):,}",
        "seconds": f"{sum(r.seconds for r in results.rows):,.0f}",
    }
    shown = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{shown}</dl>'


def curves(task: str, rows: Sequence[Row], by_arm: Mapping[str, Sequence[Answered]]) -> str:
    """Accuracy by the number of demonstrations: one chart of all ways, and one for each's controls.

    Seeds are averaged question by question, so that an interval is over questions: Wilson's for one
    seed, a bootstrap's for several.
    """
    ways: dict[str, dict[str, Line]] = {}
    for way in dict.fromkeys(r.arm.reasoning for r in rows):
        own = [r for r in rows if r.arm.reasoning == way]
        ways[way] = {
            control: _line([r.arm for r in own if r.arm.control == control], by_arm)
            for control in dict.fromkeys(r.arm.control for r in own)
        }
    plain = {_way(r): lines[""] for r, lines in ways.items() if "" in lines}
    counts = sorted({r.arm.shots for r in rows})
    levels = {"chance": rows[0].chance, "majority of the answers": rows[0].majority[1]}
    parts = [_chart(f"{task}: accuracy by number of demonstrations", plain, levels, counts)]
    for way, lines in ways.items():
        if len(lines) > 1:
            title = f"{task}, {_way(way)}: with its controls"
            named = {control or _way(way): line for control, line in lines.items()}
            shown = _chart(title, named, levels, counts)
            parts.append(
                f"<details><summary>{escape(_way(way))}, with its controls</summary>{shown}"
                "</details>"
            )
    return "".join(parts)


def _line(arms: Sequence[Arm], by_arm: Mapping[str, Sequence[Answered]]) -> Line:
    """The curve of one way of asking."""
    points, bounds = [], []
    for shots in sorted({arm.shots for arm in arms}):
        worth: dict[str, list[float]] = defaultdict(list)
        for arm in arms:
            for record in by_arm[arm.id] if arm.shots == shots else ():
                worth[record.item].append(record.right)
        means = [sum(w) / len(w) for w in worth.values()]
        whole = all(m in (0.0, 1.0) for m in means)
        bounds.append(wilson(round(sum(means)), len(means)) if whole else bootstrap_mean(means))
        points.append((float(shots), sum(means) / len(means)))
    return Line(points, marks=True, bounds=bounds)


def _chart(
    title: str, lines: Mapping[str, Line], levels: Mapping[str, float], shots: Sequence[int]
) -> str:
    """A chart of curves, with levels to compare them with."""
    most = max(shots) if max(shots) > min(shots) else min(shots) + 1
    thin = {n: Line([(min(shots), y), (most, y)], thin=True) for n, y in levels.items()}
    told = chart(title, {**lines, **thin}, most=1.0, at=shots)
    return f'{told}<p class="label">{escape(title)}; 95 % intervals</p>'


def _way(way: str) -> str:
    return "direct" if way == "none" else way


def _table(rows: Sequence[Row]) -> str:
    errors = any(r.character_error_rate is not None for r in rows)
    head = "".join(f"<th>{escape(h)}</th>" for h in headings(with_errors=errors))
    body = "".join(
        f"<tr{' class=control' if r.arm.control else ''}>"
        + "".join(f"<td>{escape(c)}</td>" for c in cells(r, with_errors=errors))
        + "</tr>"
        for r in rows
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="label">p: McNemar\'s exact test against the first arm; b and c are the '
        "questions that only the first arm, and only this one, has right.</p>"
    )


def _controls(rows: Sequence[Row]) -> str:
    """What the controls in the table are."""
    used = list(dict.fromkeys(r.arm.control for r in rows if r.arm.control))
    listed = "".join(f"<li><b>{c}</b>: {escape(CONTROLS[c])}</li>" for c in used)
    return f"<ul>{listed}</ul>" if used else ""


def _questions(rows: Sequence[Row], by_arm: Mapping[str, Sequence[Answered]], folder: Path) -> str:
    """The first questions, each with what every arm made of it."""
    seed = rows[0].arm.seed
    arms = [r.arm for r in rows if r.arm.seed == seed]
    answers = {arm.id: {a.item: a for a in by_arm[arm.id]} for arm in arms}
    first = list(by_arm[arms[0].id])[:EXAMPLES]
    parts = []
    for record in first:
        found = [(arm, answers[arm.id].get(record.item)) for arm in arms]
        said = "".join(_said(a, r) for a, r in found if r is not None and not a.control)
        controlled = "".join(_said(a, r) for a, r in found if r is not None and a.control)
        if controlled:
            said += f"<details><summary>controls</summary>{controlled}</details>"
        tags = record.prompt.count("<image>")
        own = record.images[tags - _last_images(record) :]
        images = "".join(_image(folder, ref) for ref in own)
        parts.append(
            f'<div class="question"><div style="flex:0 1 auto">{images}</div><div>'
            f"<p>{escape(record.question or 'caption')}</p>"
            f'<p class="label">right: {escape(record.expected)}</p>{said}</div></div>'
        )
    return f"<details open><summary>{len(first)} questions</summary>{''.join(parts)}</details>"


def _last_images(record: Answered) -> int:
    """How many images belong to the question itself, which stands at the end of the prompt."""
    end = record.prompt.rfind("<image>")
    count = 0
    while end >= 0:
        count += 1
        end = end - len("<image>") if record.prompt[:end].endswith("<image>") else -1
    return count


def _said(arm: Arm, record: Answered) -> str:
    """What one arm answered."""
    mark, sign = "partly", "~"
    if record.right in (0.0, 1.0):
        mark, sign = ("right", "✓") if record.right else ("wrong", "✗")
    way = ", ".join(p for p in (f"{arm.shots} shots", _way(arm.reasoning), arm.control) if p)
    parsed = "(no answer found)" if record.parsed is None else record.parsed
    whole = f"{record.prompt}⟦{record.text}⟧"
    if len(whole) > MOST_TEXT:
        whole = f"… {whole[-MOST_TEXT:]}"
    rationale = f"<p>{escape(record.rationale)}</p>" if record.rationale else ""
    agreed = f" ({percent(record.agreement)} agree)" if record.agreement is not None else ""
    return (
        f'<div class="said {mark}"><p>{sign} <b>{escape(parsed)}</b>{agreed} '
        f'<span class="label">{escape(way)}</span></p>{rationale}'
        f"<details><summary>prompt and answer</summary><pre>{escape(whole)}</pre></details></div>"
    )


def image_name(ref: str) -> str:
    """The file name under which an image is kept for the report.

    Args:
        ref: The image's path or hash, as records have it.
    """
    digest = hashlib.sha256(ref.encode(errors="backslashreplace"))
    return f"{digest.hexdigest()[:24]}.png"


def _image(folder: Path, ref: str) -> str:
    """A kept image, in the page itself."""
    file = folder / IMAGES / image_name(ref)
    if not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<img alt="" src="data:image/png;base64,{data}">'
