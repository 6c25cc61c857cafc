"""Shows the section "attacks"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

NAMES = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd-ce": "APGD (cross-entropy)",
    "apgd-dlr": "APGD (DLR)",
    "square": "Square",
    "noise": "random noise",
}


def sizes(values: Mapping[str, Any], shown: Shown) -> str:
    """Accuracy against eps."""
    lines = {
        NAMES[name]: Line(
            [(0.0, values["clean"]), *((float(k), v) for k, v in curve.items())], marks=True
        )
        for name, curve in values["linf"].items()
    }
    height, width = values["pixels"]
    parts = [
        text(
            f"{values['n']} images of {height} x {width} pixels; {percent(values['clean'])} "
            f"({interval(values['interval'])}) are right as they are. Perturbations in levels of "
            f"255; {values['steps']} steps; PGD starts {_times(values['restarts'])}."
        ),
        chart("Accuracy by the largest change of a pixel, in levels of 255", lines, most=1.0),
    ]
    if not values["gradient"]:
        parts.append(text("The model gives no gradient: only noise was tried."))
    if "l2" in values:
        rows = [(eps, percent(v)) for eps, v in values["l2"]["pgd"].items()]
        parts.append(folded("L2", table(("length", "accuracy under PGD"), rows)))
    pictures = "".join(
        figure(
            [shown(name) for name in one["images"]],
            f"{one['before'][0]} ({percent(one['before'][1], 0)}); what is added, "
            f"{one['amplified']} times as strong; {one['after'][0]} "
            f"({percent(one['after'][1], 0)})",
        )
        for one in values.get("gallery", ())
    )
    return "".join(parts) + f'<div class="figures wide">{pictures}</div>'


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def checks(values: Mapping[str, Any], shown: Shown) -> str:
    """Sanity checks."""
    found = values["checks"]
    rows = [
        ("holds" if c["passed"] else "FAILS", c["name"], c["got"], c["expected"], c["meaning"])
        for c in found["checks"]
    ]
    told = (
        "The attacks can be trusted here."
        if found["trusted"]
        else f"This attack cannot be trusted here: {found['reason']}."
    )
    return text(told) + table(("", "check", "got", "expected", "why"), rows)


def smallest(values: Mapping[str, Any], shown: Shown) -> str:
    """The smallest perturbations."""
    linf = values["found"]["linf"]
    high = 255 * linf["high"]
    sizes_of = sorted(255 * v for v in linf["values"] if v)
    count = max(1, linf["right"])
    curve = [(0.0, 1.0), *((x, 1 - (i + 1) / count) for i, x in enumerate(sizes_of))]
    half = linf["breaks_half"]
    told = (
        f"{high:.0f} levels of 255 do not break half of the {linf['right']} images that were right."
        if half is None
        else f"{255 * half:.2g} levels of 255 break half of the {linf['right']} images that were "
        "right."
    )
    parts = [
        text(told, "Each number belongs to a change that was found; a smaller one may exist."),
        chart(
            "Share of images that are still right, by levels of 255",
            {"still right": Line(curve, marks=True)},
            most=1.0,
        ),
        note(linf["note"]),
    ]
    if "l2" in values["found"]:
        l2 = values["found"]["l2"]
        parts.append(text(f"In L2, {number(l2['breaks_half'])} breaks half."))
    return "".join(parts)


def targeted(values: Mapping[str, Any], shown: Shown) -> str:
    """Targeted attacks."""
    rows = [(r["level"], percent(r["reached"])) for r in values["rows"]]
    return text(
        f"Each of {values['n']} images that are right is to be taken for one other label, drawn at "
        "random."
    ) + table(("levels of 255", "taken for it"), rows)


def transfers(values: Mapping[str, Any], shown: Shown) -> str:
    """Transfer."""
    found = values["table"]
    rows = [("as they are", *(percent(v) for v in found["clean"]))]
    rows += [
        (f"made against {source}", *(percent(v) for v in row))
        for source, row in zip(found["sources"], found["accuracies"], strict=True)
    ]
    return (
        text(
            f"{found['n']} images that this model gets right, changed by "
            f"{255 * values['eps']:.0f} levels of 255."
        )
        + table(("images", *found["models"]), rows)
        + note(found["note"])
    )


def written_words(values: Mapping[str, Any], shown: Shown) -> str:
    """Typographic attack."""
    names = {
        "clean": "as they are",
        "word": "a wrong label written on them",
        "random": "a random string",
    }
    rows = [
        (names[k], percent(r["accuracy"]), interval(r["interval"]), percent(r["as_written"]))
        for k, r in values["rows"].items()
    ]
    pictures = "".join(figure([shown(s["image"])], s["word"]) for s in values["shown"])
    return (
        table(("images", "accuracy", "95%", "answered as written"), rows)
        + f'<div class="figures">{pictures}</div>'
    )


def corruptions(values: Mapping[str, Any], shown: Shown) -> str:
    """Common corruptions."""
    rows = sorted(
        (
            (name.replace("_", " "), *(percent(e, 0) for e in errors))
            for name, errors in values["errors"].items()
        ),
        key=lambda row: -float(row[-1].rstrip("%")),
    )
    heads = ("corruption", *(f"severity {s}" for s in values["severities"]))
    return text(
        f"Mean error {percent(values['mean_error'])} over 15 corruptions "
        f"({percent(values['clean_error'])} on clean images, {values['n']} images)."
    ) + folded("Error under each", table(heads, rows))


def remedies(values: Mapping[str, Any], shown: Shown) -> str:
    """What helps."""
    rows = [(r["name"], percent(r["clean"]), percent(r["attacked"])) for r in values["rows"]]
    head = values.get("tuned_head")
    parts = [
        text(
            f"Each remedy is attacked as it would be deployed, with {255 * values['eps']:.0f} "
            "level of 255."
        ),
        table(("remedy", "images as they are", "attacked"), rows),
    ]
    if head is not None:
        parts.append(
            text(
                f"A head tuned on {head['tuned_on']} attacked images of the other half: from "
                f"{percent(head['before']['clean'])} to {percent(head['after']['clean'])} on "
                f"images as they are, from {percent(head['before']['attacked'])} to "
                f"{percent(head['after']['attacked'])} attacked."
            )
        )
    if "certified" in values:
        radii = values["certified"]["radii"]
        told = ", ".join(f"{percent(share)} within {r}" for r, share in radii.items())
        parts.append(
            text(
                f"Smoothing with sigma {values['certified']['sigma']} certifies, of "
                f"{values['certified']['right']} images that are right without it, in L2: {told}."
            )
        )
    return "".join(parts)


RENDERERS: dict[str, tuple[str, Renderer]] = {
    "sizes": ("How large a change must be", sizes),
    "checks": ("Can these attacks be trusted?", checks),
    "smallest": ("The smallest change of each image", smallest),
    "targeted": ("A label of the attacker's choice", targeted),
    "transfers": ("Images made against one model, shown to another", transfers),
    "written_words": ("A wrong word on the image", written_words),
    "corruptions": ("Weather, blur and noise", corruptions),
    "remedies": ("What helps", remedies),
}
