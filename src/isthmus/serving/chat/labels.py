"""The page's second part: sorting an image into any labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import InputError
from isthmus.serving.chat.words import words_in

Classify = Callable[[str, list[str], str, float | None], tuple[str, dict[str, float]]]
"""From an image's path, labels, templates and a threshold to the label, and all probabilities."""

TEMPLATES = ("one", "imagenet-7", "none")


def labels_tab(classify: Classify, chosen: gr.Radio, start: dict[str, str], told: Any) -> None:
    """Sorting an image into any labels."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = told(
                gr.Image(
                    type="filepath",
                    label=start["image"],
                    sources=["upload", "clipboard"],
                    height=260,
                    elem_id="sorted",
                ),
                label="image",
            )
            names = told(
                gr.Textbox(
                    "cat\ncup of coffee\nrocket\nteapot",
                    lines=4,
                    label=start["labels_box"],
                    elem_id="names",
                ),
                label="labels_box",
            )
            with gr.Row():
                template = told(
                    gr.Dropdown(list(TEMPLATES), value="one", label=start["template"], scale=1),
                    label="template",
                )
                threshold = told(
                    gr.Slider(0, 1, 0, step=0.05, label=start["threshold"], scale=2),
                    label="threshold",
                )
            go = told(gr.Button(start["classify"], variant="primary"), value="classify")
        with gr.Column(scale=1, min_width=280):
            verdict = gr.Markdown(elem_id="verdict")
            bars = told(
                gr.Label(
                    label=start["likely"], num_top_classes=12, show_heading=False, elem_id="bars"
                ),
                label="likely",
            )

    def sort(
        path: str | None, given: str, kind: str, least: float, code: str
    ) -> tuple[str, dict[str, float] | None]:
        words = words_in(code)
        labels = [part.strip() for line in given.split("\n") for part in line.split(",")]
        labels = [label for label in labels if label]
        if path is None or len(labels) < 2:
            gr.Info(words["no_labels"])
            return "", None
        try:
            best, likely = classify(path, labels, kind, least or None)
        except InputError as error:
            raise gr.Error(words["error"].format(error=error), print_exception=False) from error
        return f"## {best if best in likely else words['none']}", likely

    given = [image, names, template, threshold, chosen]
    go.click(sort, given, [verdict, bars], show_progress="minimal", api_visibility="private")


def sorter(dual_encoder: Any) -> Classify:
    """Sorts images with a dual encoder; classifiers' weights are kept on disk."""

    def classify(
        path: str, labels: Sequence[str], templates: str, threshold: float | None
    ) -> tuple[str, dict[str, float]]:
        classifier = ZeroShotClassifier(dual_encoder, list(labels), templates, threshold=threshold)
        features = classifier.transform([path])
        likely = classifier.predict_proba(features)[0]
        named = dict(zip((str(c) for c in classifier.classes_), map(float, likely), strict=True))
        return str(classifier.predict(features)[0]), named

    return classify
