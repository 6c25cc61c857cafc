"""What a person reads in ten seconds: a gauge for each limit, the worst of each, what to do first.

A gauge is a share from 0, no limit was found, to 1. It orders the limits of one audit and is no
measure to compare models by: those stand in the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRONG, WEAK = 0.5, 0.2
"""From the first on a limit is called severe, from the second on notable."""
CERTAIN = 0.05
"""The p below which a gain is taken for one."""
WORTH = 0.25
"""The share of what was right that a remedy must bring back, less what it costs, to be advised."""
HALF_AT = 2.0
"""Levels of 255 at which the attacks' gauge is a half: changes that nobody sees."""


@dataclass(frozen=True)
class Gauge:
    """One limit at a glance.

    Attributes:
        limit: "bias", "prompts" or "attacks".
        value: 0 to 1; None where it was not measured.
        word: "low", "notable", "severe" or "not measured".
        sentence: What was found, in one sentence.
    """

    limit: str
    value: float | None
    word: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The beginning of the report.

    Attributes:
        accuracy: Accuracy as deployed; None where it was not measured.
        chance: Accuracy of guessing.
        gauges: The three limits.
        first: What to do first.
    """

    accuracy: float | None
    chance: float
    gauges: tuple[Gauge, ...]
    first: str


def verdict_of(results: Mapping[str, Any]) -> Verdict:
    """The verdict on an audit's results.

    Args:
        results: As `audit` writes them, without a verdict.
    """
    sections = results["sections"]
    measures = sections.get("bias", {}).get("classes", {}).get("measures")
    gauges = (_bias(sections), _prompts(sections), _attacks(sections))
    return Verdict(
        accuracy=None if measures is None else measures["accuracy"],
        chance=1 / len(results["data"]["labels"]),
        gauges=gauges,
        first=_first(gauges, sections),
    )


def _gauge(limit: str, value: float, sentence: str) -> Gauge:
    value = min(1.0, max(0.0, value))
    word = "severe" if value >= STRONG else "notable" if value >= WEAK else "low"
    return Gauge(limit, value, word, sentence)


def _missing(limit: str) -> Gauge:
    return Gauge(limit, None, "not measured", "This section was not run, or could not run.")


def _bias(sections: Mapping[str, Any]) -> Gauge:
    """How far the worst class falls behind the mean of all; or a group, if that is further."""
    found = sections.get("bias", {}).get("classes")
    if found is None:
        return _missing("bias")
    measures = found["measures"]
    behind = measures["balanced_accuracy"] - measures["bottom_decile"]
    sentence = (
        f'The worst class, "{measures["worst"]}", is recognised in {measures["worst_recall"]:.0%} '
        f"of its images; the mean of all classes is {measures['balanced_accuracy']:.0%}."
    )
    for column in sections["bias"].get("groups", {}).get("columns", ()):
        within = column["p_within_labels"]
        if column["gap"] is None or within is None or within >= CERTAIN:
            continue
        if (gap := column["gap_within_labels"] or 0.0) > behind:
            behind = gap
            sentence = (
                f'Images of "{column["worst"]}" ({column["column"]}) are recognised '
                f'{column["gap"]:.0%} less often than those of "{column["best"]}".'
            )
    return _gauge("bias", behind, sentence)


def _prompts(sections: Mapping[str, Any]) -> Gauge:
    """The share of answers that some other wording changes."""
    found = sections.get("prompts", {})
    if "wordings" not in found:
        return _missing("prompts")
    flips = found["wordings"]["all"]
    sentence = f"Other words for the same thing change {flips['flip_rate']:.0%} of the answers."
    alone = found.get("templates", {}).get("alone")
    if alone is not None and alone["worst"] != alone["best"]:
        sentence += (
            f' The worst template, "{alone["worst"]}", is right for {alone["lowest"]:.0%}, the '
            f"best for {alone['highest']:.0%}."
        )
    return _gauge("prompts", 2 * flips["flip_rate"], sentence)


def _attacks(sections: Mapping[str, Any]) -> Gauge:
    """How small a change breaks half of what was right."""
    found = sections.get("attacks", {})
    if "smallest" not in found:
        return _without_gradient(found)
    checks = found.get("checks", {}).get("checks")
    linf = found["smallest"]["found"]["linf"]
    if checks is not None and not checks["trusted"]:
        told = f"The attacks cannot be trusted here: {checks['reason']}."
        return Gauge("attacks", None, "not measured", told)
    if linf["right"] == 0:
        return Gauge("attacks", None, "not measured", "No image was right, so none can be broken.")
    if linf["breaks_half"] is None:
        levels = 255 * linf["high"]
        return _gauge(
            "attacks", 0.1, f"{levels:.0f} levels of 255 do not break half of the images."
        )
    levels = 255 * linf["breaks_half"]
    sentence = f"A change of {levels:.2g} levels of 255 breaks half of what was right."
    return _gauge("attacks", HALF_AT / (HALF_AT + levels), sentence)


def _without_gradient(found: Mapping[str, Any]) -> Gauge:
    """What can be said of a model that gives no gradient: what a written word does."""
    if "written_words" not in found:
        return _missing("attacks")
    rows = found["written_words"]["rows"]
    sentence = (
        "It gives no gradient, so the smallest change is not known. A wrong label written on the "
        f"image takes accuracy from {rows['clean']['accuracy']:.0%} to "
        f"{rows['word']['accuracy']:.0%}."
    )
    return Gauge("attacks", None, "not measured", sentence)


def _first(gauges: tuple[Gauge, ...], sections: Mapping[str, Any]) -> str:
    """What to do first: the remedy that was measured for the severest limit."""
    known = [gauge for gauge in gauges if gauge.value is not None]
    if not known:
        return "Nothing was measured: run the sections bias, prompts and attacks."
    worst = max(known, key=lambda gauge: gauge.value or 0.0)
    remedy = {"bias": _for_bias, "prompts": _for_prompts, "attacks": _for_attacks}[worst.limit]
    return remedy(sections)


def _for_bias(sections: Mapping[str, Any]) -> str:
    measures = sections["bias"]["classes"]["measures"]
    pairs = measures["confusions"]
    if not pairs:
        return "No class is taken for another: look at the groups."
    pair = pairs[0]
    return (
        f'Look at "{pair["true"]}", which is taken for "{pair["predicted"]}" in {pair["count"]} '
        "images: give both labels a fuller description (--templates FILE.json), or a few labelled "
        "images (ZeroShotClassifier.fit)."
    )


def _for_prompts(sections: Mapping[str, Any]) -> str:
    rows = sections["prompts"].get("remedies", {}).get("rows", ())
    better = [row for row in rows[2:] if row["gain"] > 0 and row["p"] < CERTAIN]
    if not better:
        return (
            "Fix the wording and never change it: nothing that was tried is better than one "
            "template by more than chance."
        )
    best = max(better, key=lambda row: row["gain"])
    return (
        f"Use the {best['name']}: {best['gain']:+.1%} over one template on images that taught "
        f"nothing (p {best['p']:.2g})."
    )


def _for_attacks(sections: Mapping[str, Any]) -> str:
    rows = sections["attacks"].get("remedies", {}).get("rows", ())
    if len(rows) < 2:
        return "Do not let strangers choose the images, or have a person look at what matters."
    none, *others = rows
    best = max(others, key=lambda row: row["attacked"] + row["clean"])
    gain = best["attacked"] + best["clean"] - none["attacked"] - none["clean"]
    if gain < WORTH * none["clean"]:
        return (
            "No remedy that was tried is worth its price: do not let strangers choose the images, "
            "or have a person look at what matters."
        )
    return (
        f"{best['name'].capitalize()}: {none['attacked']:.0%} become {best['attacked']:.0%} under "
        f"attack, for {best['clean'] - none['clean']:+.0%} on images as they are. It does not "
        "replace a person where strangers choose the images."
    )
