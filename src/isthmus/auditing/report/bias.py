"""Shows the section "bias"."""

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

MOST_ROWS = 12


def classes(values: Mapping[str, Any], shown: Shown) -> str:
    """Recall by class."""
    found = values["measures"]
    rows = [c for c in found["classes"] if c["recall"] is not None]
    rows.sort(key=lambda c: (c["recall"], -c["n"]))
    cells = [
        (
            c["label"],
            c["n"],
            percent(c["recall"]),
            interval(c["interval"]),
            percent(c["precision"]),
            percent(found["true_shares"][c["label"]]),
            percent(found["predicted_shares"][c["label"]]),
        )
        for c in rows
    ]
    heads = ("class", "n", "recall", "95%", "precision", "share", "share predicted")
    summary = table(
        ("", "accuracy", "95%"),
        (
            ("as deployed", percent(found["accuracy"]), interval(found["accuracy_interval"])),
            (
                "mean of classes",
                percent(found["balanced_accuracy"]),
                interval(found["balanced_interval"]),
            ),
            ("worst tenth of classes", percent(found["bottom_decile"]), ""),
            (
                f'majority ("{found["majority"]}")',
                percent(found["majority_accuracy"]),
                "",
            ),
            ("chance", percent(found["chance"]), ""),
        ),
    )
    pairs = "".join(
        figure(
            [shown(f"image-{i}") for i in pair["images"]],
            f'"{pair["true"]}" taken for "{pair["predicted"]}": {pair["count"]} of '
            f"{round(pair['count'] / pair['share'])}",
        )
        for pair in found["confusions"][:6]
    )
    return (
        text(
            f"{percent(found['total_variation'])} of the predictions would have to change for all "
            "classes to be predicted as often as they occur."
        )
        + summary
        + "<h4>Worst classes</h4>"
        + table(heads, cells[:MOST_ROWS])
        + folded(f"All {len(cells)} classes", table(heads, cells) if len(cells) > MOST_ROWS else "")
        + f'<h4>What is taken for what</h4><div class="figures">{pairs}</div>'
        + note(found["note"])
        + text("What to do: describe the worst classes more fully, or fit a few images of them.")
    )


def pixels(values: Mapping[str, Any], shown: Shown) -> str:
    """The baseline on pixels."""
    own, model = (
        f"{percent(values[share])} ({interval(values[bounds])})"
        for share, bounds in (("accuracy", "interval"), ("subject", "subject_interval"))
    )
    return text(
        f"Logistic regression on 16 x 16 pixels, trained on {values['trained_on']} of these "
        f"images, is right for {own} of the other {values['n']}; the model, which was trained on "
        f"none of them, for {model}."
    )


def groups(values: Mapping[str, Any], shown: Shown) -> str:
    """Gaps between groups."""
    parts = []
    for column in values["columns"]:
        parts.append(f"<h4>Groups of {column['column']}</h4>")
        rows = [
            (
                g["name"],
                g["n"],
                percent(g["accuracy"]),
                interval(g["interval"]),
                percent(g["expected"]),
                p_value(g["p"]),
                p_value(g["p_holm"]),
                p_value(g["p_within_labels"]),
            )
            for g in column["groups"]
        ]
        heads = ("group", "n", "accuracy", "95%", "by its labels", "p", "Holm", "p within labels")
        parts.append(table(heads, rows))
        if column["gap"] is not None:
            parts.append(
                text(
                    f"The gap is {percent(column['gap'])}; by chance it would be "
                    f"{percent(column['by_chance'])} (p {p_value(column['p'])}).",
                    ""
                    if column["gap_within_labels"] is None
                    else f"Within the same labels it is {percent(column['gap_within_labels'])} "
                    f"(p {p_value(column['p_within_labels'])}).",
                )
            )
        if column["parity"] is not None:
            parity = column["parity"]
            parts.append(
                text(
                    "Demographic parity difference "
                    f"{number(parity['demographic_parity'])} (by chance "
                    f"{number(parity['demographic_parity_by_chance'])}).",
                    "Equalised odds cannot be told, since no class is in every group."
                    if parity["equalized_odds"] is None
                    else "Equalised odds difference "
                    f"{number(parity['equalized_odds'])} (by chance "
                    f"{number(parity['equalized_odds_by_chance'])}; {parity['left_out']} classes "
                    "that some group lacks are left out).",
                )
            )
        parts.append(note(column["note"]))
    advice = "What to do: collect images of the worst group, and fit or calibrate with them."
    return "".join(parts) + text(advice)


def frequency(values: Mapping[str, Any], shown: Shown) -> str:
    """Recall against frequency."""
    found = values["correlation"]
    rows = sorted(values["classes"].items(), key=lambda pair: pair[1][0])
    cells = [(label, count, percent(recall)) for label, (count, recall) in rows]
    told = (
        f"Rank correlation of how often training captions name a class and its recall: "
        f"{number(found['rho'])} (p {p_value(found['p'])})."
    )
    return (
        text(told)
        + note(found["note"])
        + folded("All classes", table(("class", "captions", "recall"), cells))
    )


def retrieval(values: Mapping[str, Any], shown: Shown) -> str:
    """Skew of searches."""
    rows = [
        (
            column,
            f"{number(v['mean_max_skew'])} ({number(v['mean_max_skew_by_chance'])})",
            f"{number(v['mean_ndkl'])} ({number(v['mean_ndkl_by_chance'])})",
            f'"{v["worst"]}": {v["worst_skew"]["most"]}',
            p_value(v["worst_skew"]["p"]),
        )
        for column, v in values["columns"].items()
    ]
    heads = ("groups of", "MaxSkew@10 (chance)", "NDKL (chance)", "most skewed search", "p")
    return text("Whether a search for a label brings some groups first.") + table(heads, rows)


def associations(values: Mapping[str, Any], shown: Shown) -> str:
    """Association tests."""
    rows = [
        (
            name,
            " / ".join(map(str, test["images"])),
            number(test["found"]["effect_size"]),
            number(test["found"]["difference"]),
            p_value(test["found"]["p_two_sided"]),
        )
        for name, test in values["tests"].items()
    ]
    notes = "".join(note(test["found"]["note"]) for test in values["tests"].values())
    return table(("test", "images", "effect size", "difference", "p"), rows) + notes


def textures(values: Mapping[str, Any], shown: Shown) -> str:
    """Shape against texture."""
    found = values["found"]
    if found["shape_share"] is None:
        return text("No image was taken for the label of its shape or of its texture.")
    rows = [(label, percent(share)) for label, share in found["by_class"].items()]
    return text(
        f"Of {found['n']} images whose shape and texture are of different labels "
        f"{found['shape']} were taken for their shape and {found['texture']} for their texture: "
        f"{percent(found['shape_share'])} for the shape ({interval(found['interval'])}). People "
        "decide for the shape in 96%, a ResNet-50 in 22% (Geirhos et al. 2019).",
        f"{found['neither']} were taken for something else.",
    ) + folded("By label of the shape", table(("label", "decisions for the shape"), rows))


def imbalance(values: Mapping[str, Any], shown: Shown) -> str:
    """The controlled study."""
    study = values["study"]
    arms = study["arms"]
    ratios = sorted({arm["ratio"] for arm in arms})
    lines = {
        name: Line(
            [
                (float(place), arm["tail"])
                for place, ratio in enumerate(ratios)
                for arm in arms
                if arm["ratio"] == ratio and arm["method"] == method and arm["tail"] is not None
            ],
            marks=True,
        )
        for name, method in (
            ("plain", "plain"),
            ("weighted loss", "weighted"),
            ("logit adjustment", "adjusted"),
            ("as few images, balanced", "fewer"),
        )
    }
    rows = [
        (
            f"1:{arm['ratio']:g}",
            arm["method"],
            arm["images"],
            percent(arm["balanced_accuracy"]),
            percent(arm["head"]),
            percent(arm["tail"]),
            f"{100 * arm['gain']:+.1f}",
        )
        for arm in arms
    ]
    heads = ("imbalance", "method", "images", "mean of classes", "head", "tail", "gain")
    return (
        text(
            "A linear head on this model's features, trained with ever fewer images of some "
            f"classes; {_seeds(len(study['seeds']))}. The curve is the recall of the rarest third."
        )
        + chart("Recall of the rarest third of classes by imbalance", lines, most=1.0)
        + note(
            "Places on the axis are imbalances of " + ", ".join(f"1:{r:g}" for r in ratios) + "."
        )
        + folded("All numbers", table(heads, rows))
        + note(study["note"])
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"the mean of {count} seeds"


RENDERERS: dict[str, tuple[str, Renderer]] = {
    "classes": ("Classes", classes),
    "pixels": ("A baseline that only knows colours", pixels),
    "groups": ("Groups", groups),
    "frequency": ("Training frequency", frequency),
    "retrieval": ("Searches", retrieval),
    "associations": ("Associations", associations),
    "textures": ("Shape or texture", textures),
    "imbalance": ("What imbalance costs", imbalance),
}
