"""Section "confidence": whether probabilities mean something, and when to keep silent."""

from __future__ import annotations

from isthmus.auditing.bench import Bench
from isthmus.auditing.measures.confidence import calibration_study
from isthmus.auditing.measures.conformal import CONFORMAL_METHODS, conformal
from isthmus.auditing.measures.outside import (
    at_threshold,
    detect_outside,
    keep_threshold,
    max_softmax,
)
from isthmus.auditing.measures.selective import selective
from isthmus.auditing.part import Measured, Part
from isthmus.auditing.subject import ClassifierSubject
from isthmus.errors import InputError

ALPHA = 0.1
"""Label sets may miss the right label of this share of images."""


def calibration(bench: Bench) -> Measured:
    """Reliability as deployed, and after scaling that was fitted on the other half."""
    fit, test = bench.halves
    study = calibration_study(
        (bench.logits[fit], bench.targets[fit]),
        (bench.logits[test], bench.targets[test]),
        draws=bench.settings.draws,
        seed=bench.settings.seed,
    )
    return Measured({"study": study})


def answering(bench: Bench) -> Measured:
    """What it is worth to answer only when sure."""
    surest = bench.logits.softmax(dim=-1).amax(dim=-1)
    return Measured({"curve": selective(surest, bench.right)})


def outside(bench: Bench) -> Measured:
    """Whether images of other things are noticed; the threshold is from the other half."""
    if not bench.settings.outside:
        raise InputError(
            'no images of other things were given: name a folder with --outside, for "none of '
            'these"'
        )
    foreign = bench.subject.logits(bench.settings.outside).float()
    found = detect_outside(
        bench.logits,
        foreign,
        scale=bench.subject.similarity_scale,
        draws=bench.settings.draws,
        seed=bench.settings.seed,
    )
    fit, test = bench.halves
    surest, others = max_softmax(bench.logits), max_softmax(foreign)
    threshold = keep_threshold(surest[fit])
    return Measured({"scores": found, "deployed": at_threshold(surest[test], others, threshold)})


def label_sets(bench: Bench) -> Measured:
    """Sets of labels that hold the right one for nine images of ten."""
    fit, test = bench.halves
    parts = [(bench.logits[half], bench.targets[half]) for half in (fit, test)]
    found = [
        conformal(parts[0], parts[1], method=method, alpha=ALPHA, seed=bench.settings.seed)  # type: ignore[arg-type]
        for method in CONFORMAL_METHODS
    ]
    return Measured({"sets": found, "labels": bench.labels})


def saved(bench: Bench) -> Measured:
    """A calibration that `isthmus classify --calibration` uses, fitted on all images."""
    if not isinstance(bench.subject, ClassifierSubject):
        raise InputError("a calibration file is a dual encoder's; isthmus classify is what uses it")
    names = [bench.labels[c] for c in bench.data.targets]
    made = bench.subject.classifier.calibrate(
        bench.subject.features(bench.images), names
    ).calibration
    assert made is not None
    if bench.folder is not None:
        made.save(bench.folder / "calibration.json")
    return Measured({"temperature": made.temperature, "fitted_on": len(bench.images)})


PARTS = (
    Part("confidence", "calibration", calibration, 3),
    Part("confidence", "answering", answering),
    Part("confidence", "outside", outside, 3),
    Part("confidence", "label_sets", label_sets),
    Part("confidence", "saved", saved),
)
