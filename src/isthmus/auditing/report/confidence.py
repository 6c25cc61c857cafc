"""Shows the section "confidence"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isthmus.evaluation.results import p_value
from isthmus.reports.charts import Line, chart
from isthmus.reports.html import (
    Renderer,
    Shown,
    folded,
    interval,
    note,
    number,
    percent,
    table,
    text,
)


def calibration(values: Mapping[str, Any], shown: Shown) -> str:
    """Reliability before and after."""
    study = values["study"]
    before = study["before"]
    named = [("as deployed", before, "")]
    named += [(f"{s['method']} scaling", s["after"], s["note"]) for s in study["scaled"]]
    lines = {
        name: Line([(b["confidence"], b["accuracy"]) for b in found["bins"] if b["n"]], marks=True)
        for name, found, _ in named
        if found is not None
    }
    lines["as it should be"] = Line([(0.0, 0.0), (1.0, 1.0)], thin=True)
    rows = [
        (
            name,
            percent(found["confidence"]),
            percent(found["accuracy"]),
            number(found["ece"]),
            " to ".join(number(v) for v in found["ece_interval"]),
            p_value(found["ece_p"]),
            number(found["brier"]),
            number(found["nll"]),
        )
        for name, found, _ in named
        if found is not None
    ]
    heads = ("", "mean confidence", "accuracy", "ECE", "95%", "p", "Brier", "NLL")
    told = (
        f"It is right for {percent(before['accuracy'])} and says {percent(before['confidence'])} "
        f"on average (ECE {number(before['ece'])}; {number(before['ece_if_calibrated'])} would be "
        "noise)."
    )
    return (
        text(told, f"Scaling was fitted on {study['n_fitted']} other images.")
        + chart("Accuracy by confidence", lines, most=1.0)
        + table(heads, rows)
        + "".join(note(why) for _, _, why in named)
        + text(_advice(before, study["scaled"]))
    )


def _advice(before: Mapping[str, Any], scaled: Sequence[Mapping[str, Any]]) -> str:
    """What to do, by what was gained on images that nothing was fitted on."""
    better = [s for s in scaled if s["after"] is not None and s["after"]["nll"] < before["nll"]]
    if not better:
        return "Scaling does not make these probabilities better: do not rely on them."
    best = min(better, key=lambda s: float(s["after"]["nll"]))
    return (
        f"What to do: {best['method']} scaling makes NLL {number(best['after']['nll'])} of "
        f"{number(before['nll'])}. isthmus classify --calibration calibration.json uses a "
        "temperature; ZeroShotClassifier.calibrate has both."
    )


def answering(values: Mapping[str, Any], shown: Shown) -> str:
    """Risk and coverage."""
    curve = values["curve"]
    points = list(zip(curve["coverage"], curve["risk"], strict=True))
    rows = [
        (percent(a["coverage"], 0), a["answered"], percent(a["accuracy"]), interval(a["interval"]))
        for a in curve["at_coverage"]
    ]
    wanted = [
        (percent(a["accuracy"], 0), percent(a["coverage"]), number(a["threshold"]))
        for a in curve["at_accuracy"]
    ]
    return (
        text(
            "If only the surest images are answered: the share of wrong answers by the share of "
            f"images answered. Area {number(curve['aurc'])}, of which {number(curve['e_aurc'])} is "
            "the fault of the confidence."
        )
        + chart("Wrong answers by coverage", {"risk": Line(points)})
        + table(("answered", "images", "accuracy", "95%"), rows)
        + folded("Thresholds", table(("accuracy wanted", "coverage", "threshold"), wanted))
    )


def outside(values: Mapping[str, Any], shown: Shown) -> str:
    """None of these."""
    rows = [
        (
            d["score"],
            percent(d["auroc"]),
            interval(d["auroc_interval"]),
            percent(d["at_95"]["kept_outside"]),
        )
        for d in values["scores"]
    ]
    at = values["deployed"]
    return (
        text('Images of other things should be answered with "none of these".')
        + table(("score", "AUROC", "95%", "false positives at 95% kept"), rows)
        + text(
            f"A threshold of {number(at['threshold'])}, fitted on other images, keeps "
            f"{percent(at['kept_inside'])} of the images and {percent(at['kept_outside'])} of the "
            "others."
        )
    )


def label_sets(values: Mapping[str, Any], shown: Shown) -> str:
    """Conformal sets."""
    rows = [
        (
            s["method"].upper(),
            percent(s["coverage"]),
            interval(s["interval"]),
            number(s["mean_size"]),
            percent(s["singletons"]),
            f"{values['labels'][s['worst_class']]}: "
            + percent(min(c["coverage"] for c in s["by_class"])),
        )
        for s in values["sets"]
    ]
    return text(
        "Sets of labels that should hold the right one for 90% of new images like these, whatever "
        "the model is worth."
    ) + table(("method", "held it", "95%", "labels in a set", "one label", "worst class"), rows)


def saved(values: Mapping[str, Any], shown: Shown) -> str:
    """The calibration file."""
    return text(
        f"calibration.json in this folder holds a temperature of {number(values['temperature'])}, "
        f"fitted on all {values['fitted_on']} images."
    )


RENDERERS: dict[str, tuple[str, Renderer]] = {
    "calibration": ("Does it know how sure it is?", calibration),
    "answering": ("Answering only when sure", answering),
    "outside": ("None of these", outside),
    "label_sets": ("Sets of labels", label_sets),
    "saved": ("A calibration to use", saved),
}
