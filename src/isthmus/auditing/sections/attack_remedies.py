"""What helps against attacks, each remedy attacked as it would be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isthmus.auditing.attacks.attackable import features_of, pixels_of
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
from isthmus.auditing.sections.target import COMPARED, white_box
from isthmus.auditing.subject import ClassifierSubject

TUNED_ON = 48
"""Images at most that a head is tuned on, and as many that it is measured on."""
RADII = (0.0, 0.15, 0.3)
"""L2 radii; of 100 views at sigma 0.25 none beyond 0.37 can be certified."""


def remedies(bench: Bench) -> Measured:
    """Smoothing, random crops and a tuned head, each attacked as it would be deployed."""
    target = white_box(bench)
    subject, settings = bench.subject, bench.settings
    eps = COMPARED
    plain = target.accuracy(target.attacked(eps=eps))
    rows: list[dict[str, Any]] = [{"name": "none", "clean": target.clean, "attacked": plain}]
    seen, fresh = settings.least(2, 4), settings.least(5, 32)
    sigma = 0.25
    for name, view in (
        ("noise and votes", gaussian_view(sigma)),
        ("crops and votes", crop_view(0.9)),
    ):
        made = attack(
            averaged(target.model, view, samples=seen),
            target.sample,
            target.sample_targets,
            method="pgd",
            norm="linf",
            eps=eps,
            steps=target.steps,
        )
        clean, attacked = (
            votes(target.model, p, view, n=fresh, seed=1).argmax(-1) == target.sample_targets
            for p in (target.sample, made)
        )
        shares = {"clean": float(clean.float().mean()), "attacked": float(attacked.float().mean())}
        rows.append({"name": name} | shares)
    told: dict[str, Any] = {"n": target.n, "eps": eps, "rows": rows}
    if not settings.quick:
        certificates = certify(target.model, target.pixels, sigma=sigma, select=20, n=100)
        goals = target.targets.tolist()
        told["certified"] = {
            "sigma": sigma,
            "right": len(goals),
            "radii": {str(r): certified_accuracy(certificates, goals, r) for r in RADII},
        }
        if isinstance(subject, ClassifierSubject) and subject.similarity_scale is not None:
            told["tuned_head"] = _tuned(bench, subject, eps)
    return Measured(told)


def _tuned(bench: Bench, subject: ClassifierSubject, eps: float) -> Mapping[str, Any]:
    """A head that was tuned on adversarial images of one half, measured on the other."""
    fit, test = (half.tolist() for half in bench.halves)
    fit, test = (own[:: max(1, len(own) // TUNED_ON)][:TUNED_ON] for own in (fit, test))
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
        epochs=4,
        test_steps=10,
    )
    return {"before": tuned.before, "after": tuned.after, "tuned_on": len(fit)}
