"""What helps against attacks, each remedy attacked as it would be deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from isthmus.auditing.attacks.attackable import features_of, pixels_of, scores
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.attacks.defences import (
    averaged,
    certified_accuracy,
    certify,
    crop_view,
    gaussian_view,
    votes,
)
from isthmus.auditing.attacks.tuned_head import tune_head, zero_shot_head
from isthmus.auditing.bench import Bench
from isthmus.auditing.part import Measured
from isthmus.auditing.sections.target import COMPARED, Target, white_box
from isthmus.auditing.subject import ClassifierSubject


def remedies(bench: Bench) -> Measured:
    """Smoothing, random crops and a tuned head, each attacked as it would be deployed."""
    target = white_box(bench)
    subject, settings = bench.subject, bench.settings
    eps = COMPARED
    rows = [_remedy("none", target, target.attacked(eps=eps), lambda p: scores(target.model, p))]
    seen, fresh = settings.least(2, 4), settings.least(8, 32)
    sigma = 0.25
    for name, view in (
        ("noise and votes", gaussian_view(sigma)),
        ("crops and votes", crop_view(0.9)),
    ):
        made = attack(
            averaged(target.model, view, samples=seen),
            target.pixels,
            target.targets,
            method="pgd",
            norm="linf",
            eps=eps,
            steps=target.steps,
        )
        rows.append(
            _remedy(
                name,
                target,
                made,
                lambda p, view=view: votes(target.model, p, view, n=fresh, seed=1).float(),  # type: ignore[misc]
            )
        )
    told: dict[str, Any] = {"n": len(target.targets), "eps": eps, "rows": rows}
    if not settings.quick:
        certificates = certify(target.model, target.pixels, sigma=sigma, select=20, n=100)
        goals = target.targets.tolist()
        told["certified"] = {
            "sigma": sigma,
            "radii": {str(r): certified_accuracy(certificates, goals, r) for r in (0.0, 0.25, 0.5)},
        }
    if isinstance(subject, ClassifierSubject) and subject.similarity_scale is not None:
        told["tuned_head"] = _tuned(bench, subject, eps)
    return Measured(told)


def _remedy(
    name: str, target: Target, made: Tensor, answers: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Accuracy with a remedy on images as they are, and on those that were made against it."""
    right = [
        float((answers(p).argmax(-1) == target.targets).float().mean())
        for p in (target.pixels, made)
    ]
    return {"name": name, "clean": right[0], "attacked": right[1]}


def _tuned(bench: Bench, subject: ClassifierSubject, eps: float) -> Mapping[str, Any]:
    """A head that was tuned on adversarial images of one half, measured on the other."""
    fit, test = (half.tolist() for half in bench.halves)
    most = bench.settings.least(8, 48)
    fit, test = fit[:: max(1, len(fit) // most)][:most], test[:: max(1, len(test) // most)][:most]
    pixels = [pixels_of(subject.classifier, [bench.images[i] for i in own]) for own in (fit, test)]
    tuned = tune_head(
        features_of(subject.classifier),
        *zero_shot_head(subject.classifier),
        pixels[0],
        bench.targets[fit],
        held_pixels=pixels[1],
        held_targets=bench.targets[test],
        eps=eps,
        steps=2,
        epochs=bench.settings.least(1, 4),
        test_steps=bench.settings.least(5, 10),
    )
    return {"before": tuned.before, "after": tuned.after, "tuned_on": len(fit)}
