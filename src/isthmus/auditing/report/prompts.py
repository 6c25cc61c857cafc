"""Shows the section "prompts"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isthmus.evaluation.results import p_value
from isthmus.reports.charts import Line, chart
from isthmus.reports.html import (
    Renderer,
    Shown,
    figure,
    folded,
    interval,
    note,
    number,
    percent,
    table,
    text,
)


def templates(values: Mapping[str, Any], shown: Shown) -> str:
    """Every template alone."""
    found = values["alone"]
    rows = sorted(found["templates"], key=lambda t: -t["accuracy"])
    cells = [
        (
            t["template"],
            percent(t["accuracy"]),
            interval(t["interval"]),
            number(t["ece"]),
            number(t["brier"]),
            number(t["nll"]),
        )
        for t in rows
    ]
    heads = ("template", "accuracy", "95%", "ECE", "Brier", "NLL")
    spread = "" if found["sd"] is None else f", standard deviation {100 * found['sd']:.1f} points"
    return (
        text(
            f"{len(rows)} templates alone: mean {percent(found['mean'])}{spread}, from "
            f'{percent(found["lowest"])} ("{found["worst"]}") to {percent(found["highest"])} '
            f'("{found["best"]}", chosen on these very images). As deployed: '
            f"{percent(values['accuracy'])}."
        )
        + table(heads, cells[:8])
        + folded(f"All {len(cells)}", table(heads, cells) if len(cells) > 8 else "")
    )


def ensembles(values: Mapping[str, Any], shown: Shown) -> str:
    """Accuracy by the size of an ensemble."""
    sizes = values["sizes"]
    at = [float(s["size"]) for s in sizes]
    lines = {
        "these templates": Line([(float(s["size"]), s["accuracy"]) for s in sizes], marks=True),
        "random words": Line(list(zip(at, values["random_words"], strict=False)), marks=True),
    }
    return text(
        "An ensemble of random words gains too. Only what these templates gain beyond it is "
        "due to what they say."
    ) + chart("Accuracy by the number of templates", lines, most=1.0, at=at)


def wordings(values: Mapping[str, Any], shown: Shown) -> str:
    """Flips by kind of change."""
    every = values["all"]
    rows = [
        (
            kind,
            v["wordings"] - 1,
            percent(v["flip_rate"]),
            interval(v["flip_interval"]),
            percent(v["flipped_any"]),
            number(v["kappa"]),
            f"{percent(v['accuracy_lowest'])} to {percent(v['accuracy_highest'])}",
        )
        for kind, v in values["by_kind"].items()
    ]
    heads = ("change", "wordings", "answers changed", "95%", "by any", "Fleiss' kappa", "accuracy")
    each = [
        (
            w["kind"],
            w["example"],
            f"{w['changed']} of {w['of']}",
            percent(w["flipped"]),
            percent(w["accuracy"]),
        )
        for w in values["wordings"]
    ]
    flips = "".join(
        figure(
            [shown(f["image"])],
            f'"{f["before"]}" becomes "{f["after"]}": {f["example"]}',
        )
        for f in values["shown"]
    )
    left = "; ".join(f"{kind}: {why}" for kind, why in values["left_out"].items())
    return (
        text(
            f"Nothing but the wording changes: {percent(every['flip_rate'])} of the answers differ "
            f"({interval(every['flip_interval'])}), and {percent(every['flipped_any'])} of the "
            f"images are answered otherwise under at least one of {every['wordings'] - 1} wordings."
        )
        + table(heads, rows)
        + f'<div class="figures">{flips}</div>'
        + folded(
            "Every wording",
            table(("change", "example", "changed", "answers changed", "accuracy"), each),
        )
        + note(f"Left out: {left}." if left else "")
        + text("What to do: fix the wording, and use an ensemble of templates.")
    )


def more_labels(values: Mapping[str, Any], shown: Shown) -> str:
    """Distractors."""
    rows = [
        (r["labels"], percent(r["accuracy"]), interval(r["interval"]), percent(r["taken"]))
        for r in values["rows"]
    ]
    return (
        text("Labels of everyday things that are in none of the images are added.")
        + table(("labels added", "accuracy", "95%", "answered with one of them"), rows)
        + folded("Which", text(", ".join(values["names"])))
    )


def remedies(values: Mapping[str, Any], shown: Shown) -> str:
    """What helps."""
    rows = [
        (
            r["name"],
            percent(r["accuracy"]),
            interval(r["interval"]),
            f"{100 * r['gain']:+.1f}",
            p_value(r["p"]),
        )
        for r in values["rows"]
    ]
    weights = [(w["template"], percent(w["weight"])) for w in values["weights"]]
    return (
        text(f"Measured on {values['n']} images that taught none of them.")
        + table(("", "accuracy", "95%", "gain, points", "McNemar p"), rows)
        + folded("Templates of most weight", table(("template", "weight"), weights))
    )


RENDERERS: dict[str, tuple[str, Renderer]] = {
    "templates": ("Templates alone", templates),
    "ensembles": ("Ensembles", ensembles),
    "wordings": ("The same in other words", wordings),
    "more_labels": ("More labels", more_labels),
    "remedies": ("What helps", remedies),
}
