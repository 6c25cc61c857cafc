"""`report.html`: a verdict, then each section; self-contained, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from isthmus.auditing.bench import IMAGES
from isthmus.auditing.report import attacks, bias, confidence, prompts
from isthmus.files import write_text
from isthmus.reports.html import (
    Renderer,
    Shown,
    embedded,
    gauge,
    note,
    percent,
    table,
    text,
)
from isthmus.reports.page import page

REPORT = "report.html"
SECTIONS: dict[str, tuple[str, str, dict[str, tuple[str, Renderer]]]] = {
    "bias": (
        "Bias and imbalance",
        "Which classes and groups are served worse than others?",
        bias.RENDERERS,
    ),
    "prompts": (
        "Sensitivity to prompts",
        "How far does the answer depend on the words around a label?",
        prompts.RENDERERS,
    ),
    "attacks": (
        "Adversarial fragility",
        "How small a change of the image changes the answer?",
        attacks.RENDERERS,
    ),
    "confidence": (
        "Confidence",
        "Do its probabilities mean something, and does it know when to keep silent?",
        confidence.RENDERERS,
    ),
}
GAUGES = {"bias": "Bias", "prompts": "Prompts", "attacks": "Attacks"}
STYLE = """
body { max-width: 940px; }
.table { overflow-x: auto; margin: 8px 0; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: 5px 9px; text-align: left; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 15em; }
th { font-weight: 600; vertical-align: bottom; }
h3 { font-size: 1rem; margin: 22px 0 4px; } h4 { font-size: .92rem; margin: 14px 0 2px; }
section { border-top: 1px solid var(--line); margin-top: 36px; }
.gauges { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px;
  margin: 16px 0; }
.gauge { background: var(--soft); border-radius: 10px; padding: 12px 14px; }
.gauge h3 { margin: 0 0 6px; display: flex; justify-content: space-between; }
.gauge p { margin: 8px 0 0; font-size: .9rem; }
.bar-of { height: 8px; background: var(--line); border-radius: 4px; overflow: hidden; }
.bar-of i { display: block; height: 100%; }
.first { border-left: 4px solid #2f6fde; background: var(--soft); padding: 10px 14px;
  border-radius: 0 8px 8px 0; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 10px 0; }
figure { margin: 0; flex: 1 1 180px; max-width: 300px; }
.wide figure { flex: 1 1 300px; max-width: 460px; }
figure img { height: 84px; max-width: 48%; object-fit: contain; background: var(--soft);
  border-radius: 6px; margin: 0 4px 2px 0; }
figcaption { font-size: .82rem; overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: .9rem; margin: 6px 0; }
"""


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes `report.html` of results, with the images that the folder keeps.

    Args:
        results: As in `results.json`.
        folder: The audit's folder.

    Returns:
        The page's path.
    """

    def shown(name: str) -> str:
        return embedded(folder / IMAGES / f"{name}.png")

    target = folder / REPORT
    write_text(target, report(results, shown))
    return target


def report(results: Mapping[str, Any], shown: Shown) -> str:
    """The page of results.

    Args:
        results: As in `results.json`.
        shown: The source of an image that was kept.
    """
    model = results["model"]["name"]
    other = results.get("against")
    title = f"{model}: audit" if other is None else f"{model} and {other['name']}: audit"
    body = [f"<h1>{escape(title)}</h1>", _verdict(results), _facts(results)]
    if other is not None:
        body.append(_beside(results, other))
    for name, (heading, question, renderers) in SECTIONS.items():
        if name in results["settings"]["sections"]:
            body.append(_section(name, heading, question, renderers, results, shown))
    return page(title, "".join(body), STYLE)


def _verdict(results: Mapping[str, Any]) -> str:
    verdict = results["verdict"]
    gauges = "".join(
        gauge(GAUGES[g["limit"]], g["value"], g["word"], g["sentence"]) for g in verdict["gauges"]
    )
    measured = (
        ""
        if verdict["accuracy"] is None
        else (
            f"Right for {percent(verdict['accuracy'])} of {results['data']['images']} images of "
            f"{len(results['data']['labels'])} labels (chance {percent(verdict['chance'])})."
        )
    )
    first = f'<p class="first"><b>First:</b> {escape(verdict["first"])}</p>'
    return text(measured) + f'<div class="gauges">{gauges}</div>{first}'


def _facts(results: Mapping[str, Any]) -> str:
    settings, left = results["settings"], results["data"]["left_out"]
    told = [f"seed {settings['seed']}", f"images {results['data']['fingerprint']}"]
    if settings["quick"]:
        told.append("a quick audit: few images and draws, wide intervals")
    if left:
        told.append(f"{len(left)} images were left out, the first: {left[0]}")
    return note("; ".join(told))


def _beside(results: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Both models' main numbers, side by side."""
    pairs = [(results["model"]["name"], results["sections"]), (other["name"], other["sections"])]

    def row(name: str, *path: str, share: bool = True) -> tuple[str, ...] | None:
        cells = []
        for _, sections in pairs:
            value: Any = sections
            for step in path:
                value = value.get(step) if isinstance(value, Mapping) else None
            known = isinstance(value, int | float)
            cells.append(
                "not measured" if not known else percent(value) if share else f"{value:.3g}"
            )
        return (name, *cells)

    rows = [
        row("accuracy", "bias", "classes", "measures", "accuracy"),
        row("worst tenth of classes", "bias", "classes", "measures", "bottom_decile"),
        row("answers changed by other words", "prompts", "wordings", "all", "flip_rate"),
        row("ECE", "confidence", "calibration", "study", "before", "ece", share=False),
    ]
    shown = table(("", *(name for name, _ in pairs)), [r for r in rows if r is not None])
    return f"<section><h2>Side by side</h2>{shown}</section>"


def _section(
    name: str,
    heading: str,
    question: str,
    renderers: Mapping[str, tuple[str, Renderer]],
    results: Mapping[str, Any],
    shown: Shown,
) -> str:
    parts = [f'<section id="{name}"><h2>{escape(heading)}</h2>', text(question)]
    found = results["sections"].get(name, {})
    for part, (title, renderer) in renderers.items():
        if part in found:
            parts.append(f"<h3>{escape(title)}</h3>{renderer(found[part], shown)}")
    missing = [
        (title, results["missing"][f"{name}/{part}"])
        for part, (title, _) in renderers.items()
        if f"{name}/{part}" in results["missing"]
    ]
    if missing:
        parts.append("<h3>Not measured</h3>" + table(("", "what is missing"), missing))
    return "".join(parts) + "</section>"
