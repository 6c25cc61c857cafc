"""A run as a page: one HTML file that needs nothing else, for people to look at and to send on."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from isthmus.files import write_text
from isthmus.model.checkpoint import DESCRIPTION
from isthmus.reports.charts import Line, chart
from isthmus.reports.page import page
from isthmus.training.log import read_log

REPORT = "report.html"
MOST_BROKEN = 50


def write_report(folder: Path, description: str = DESCRIPTION) -> Path:
    """Writes `report.html` from a run's log, configuration and sample answers.

    Args:
        folder: The run's folder.
        description: The file in it that describes the model.

    Returns:
        The page's path.

    Raises:
        CheckpointError: If it cannot be written.
    """
    entries = read_log(folder)
    file = folder / description
    described = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    steps = [e for e in entries if "loss" in e]
    held = [e for e in entries if "evaluation" in e]
    body = [
        f"<h1>{escape(folder.resolve().name)}</h1>",
        f"<p>{escape(_what(described.get('config', {})))}</p>",
        _facts(steps, held),
        "<h2>Loss</h2>",
        chart("Loss by step", _losses(steps, held)),
        "<h2>Learning rate</h2>",
        chart("Learning rate by step", {"largest": _line(steps, "lr")}),
        *_gates(steps),
        "<h2>Speed</h2>",
        chart("Samples per second", {"samples/s": _line(steps, "samples_per_second")}),
        *_answers([e for e in entries if "answers" in e], folder),
        *_broken([e for e in entries if "broken" in e]),
        "<h2>Configuration</h2><details><summary>all of it</summary><pre>",
        escape(json.dumps(described, indent=2, ensure_ascii=False)),
        "</pre></details>",
    ]
    text = page(folder.resolve().name, "".join(body))
    target = folder / REPORT
    write_text(target, text)
    return target


def _what(config: dict[str, Any]) -> str:
    """The parts of a model in a line."""
    if not config:
        return "No model has been saved yet."
    if "name" in config:  # a dual encoder that was trained whole
        return str(config["name"])
    parts = [("vision", "name"), ("connector", "type"), ("fusion", "type")]
    parts += [("language", "name"), ("text", "name")]
    return " + ".join(str(config[part][key]) for part, key in parts if part in config)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _facts(steps: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]]) -> str:
    """The figures that one looks for first."""
    found = [e["held_out_loss"] for e in held if e["held_out_loss"] is not None]
    best = min(held, key=lambda e: e["held_out_loss"] or 0.0) if found else None
    facts = {
        "steps": f"{steps[-1]['step']:,}" if steps else "0",
        "last loss": _number(steps[-1]["loss"]) if steps else "none",
        "last held-out loss": _number(found[-1]) if found else "none",
        "best held-out loss": f"{_number(min(found))} (step {best['step']:,})" if best else "none",
    }
    shown = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{shown}</dl>'


def _line(steps: Sequence[dict[str, Any]], key: str) -> Line:
    return Line([(e["step"], e[key]) for e in steps if e.get(key) is not None])


def _losses(steps: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]]) -> dict[str, Line]:
    """The loss of each data set, and what was kept aside."""
    names = list(dict.fromkeys(n for e in steps for n in e.get("losses", {})))
    lines = {
        name: Line(
            [
                (e["step"], e["losses"][name])
                for e in steps
                if e.get("losses", {}).get(name) is not None
            ],
            smooth=True,
        )
        for name in names
    }
    for name in dict.fromkeys(n for e in held for n in e["evaluation"]):
        points = [(e["step"], e["evaluation"][name]) for e in held if name in e["evaluation"]]
        lines[f"{name}, held out"] = Line(points, marks=True)
    return lines


def _gates(steps: Sequence[dict[str, Any]]) -> list[str]:
    """How far each gated block has opened, over time."""
    logged = [e for e in steps if "gates" in e]
    if not logged:
        return []
    parts = [
        "<h2>Gates</h2>",
        "<p>tanh of each block's gate; 0 leaves the language model alone.</p>",
    ]
    last = logged[-1]["gates"]
    for name in dict.fromkeys(name for own in last.values() for name in own):
        lines = {
            f"layer {layer}": Line([(e["step"], e["gates"][layer][name]) for e in logged])
            for layer in last
            if name in last[layer]
        }
        parts += [f"<h3>{name}</h3>", chart(f"Gates of {name} by step", lines)]
    return parts


def _image(folder: Path, name: str) -> str:
    """An image of the run's folder, in the page itself."""
    file = folder / name
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _answers(entries: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """What the model answered, the latest first."""
    parts = ["<h2>Answers</h2>"] if entries else []
    for number, entry in enumerate(reversed(entries)):
        answered = []
        for found in entry["answers"]:
            images = "".join(_image(folder, name) for name in found["images"])
            question = escape(found["question"] or "caption")
            answered.append(
                f'<div class="answer">{images}<div><p class="label">{question}</p>'
                f"<p>{escape(found['answer'] or '(nothing)')}</p>"
                f'<p class="label">expected: {escape(found["expected"] or "")}</p></div></div>'
            )
        opened = " open" if number == 0 else ""
        title = f"after step {entry['step']:,}"
        parts.append(f"<details{opened}><summary>{title}</summary>{''.join(answered)}</details>")
    return parts


def _broken(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Samples that could not be used."""
    found = {b["image"]: b["why"] for e in entries for b in e["broken"]}
    if not found:
        return []
    listed = "".join(
        f"<li>{escape(name)}: {escape(why)}</li>" for name, why in list(found.items())[:MOST_BROKEN]
    )
    more = f"<p>and {len(found) - MOST_BROKEN} more</p>" if len(found) > MOST_BROKEN else ""
    return [f"<h2>Samples that could not be used ({len(found)})</h2><ul>{listed}</ul>{more}"]
