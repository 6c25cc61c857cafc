"""Section "attacks": the smallest changes of an image that change its label, and what helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.attacks.attack_checks import attack_checks, gradient_health
from isthmus.auditing.attacks.attackable import Attackable, from_classifier, scores
from isthmus.auditing.attacks.attacking import attack, noise
from isthmus.auditing.attacks.corruptions import CORRUPTIONS, corrupted, mean_corruption_error
from isthmus.auditing.attacks.smallest import smallest_eps
from isthmus.auditing.attacks.transfer import transfer
from isthmus.auditing.attacks.typographic import typographic_attack
from isthmus.auditing.bench import Bench
from isthmus.auditing.part import Measured, Part
from isthmus.auditing.sections.attack_remedies import remedies
from isthmus.auditing.sections.target import (
    COMPARED,
    SCORE_ONLY,
    SIDE,
    Target,
    attackable,
    image_of,
    target_of,
    white_box,
)
from isthmus.auditing.subject import ClassifierSubject
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson
from isthmus.media.image import open_image

LEVELS = (1, 2, 4, 8)
"""L-inf sizes, in levels of 255."""
LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""L2 sizes, over all pixels and channels."""
LARGE = 0.5
GALLERY = 4
AMPLIFIED = 16


# --- Parts ----------------------------------------------------------------------------------------


def sizes(bench: Bench) -> Measured:
    """Accuracy under each attack against the size of the perturbation, beside random noise."""
    target = target_of(bench)
    settings = bench.settings
    methods = ["fgsm", "pgd"] if target.model.has_gradient else []
    if target.model.has_gradient and not settings.quick:
        methods += ["apgd-ce"] + (["apgd-dlr"] if target.model.classes > 2 else [])
    levels: tuple[int, ...] = LEVELS if target.model.has_gradient else (8,)
    levels = levels[::2] if settings.quick else levels
    curves: dict[str, dict[str, float]] = {name: {} for name in (*methods, "noise")}
    for level in levels:
        eps = level / 255
        for method in methods if level in (levels[0], levels[-1]) else methods[:2]:
            curves[method][str(level)] = target.accuracy(target.attacked(method, eps=eps))
        loud = noise(
            target.pixels,
            "linf",
            eps,
            settings.seed,
            settings.least(1, 5),
            target.model,
            target.targets,
        )
        curves["noise"][str(level)] = target.accuracy(loud)
    told = _about(target) | {"linf": curves}
    if methods:
        lengths = LENGTHS[1:2] if settings.quick else LENGTHS
        told["l2"] = {
            "pgd": {str(e): target.accuracy(target.attacked(norm="l2", eps=e)) for e in lengths}
        }
        told["gallery"] = _gallery(bench, target)
    return Measured(told)


def _about(target: Target) -> dict[str, Any]:
    height, width = target.model.size
    return {
        "n": target.n,
        "clean": target.clean,
        "interval": wilson(len(target.pixels), target.n),
        "pixels": [height, width],
        "steps": target.steps,
        "restarts": target.restarts,
        "gradient": target.model.has_gradient,
    }


def _gallery(bench: Bench, target: Target) -> list[dict[str, Any]]:
    """Images that were right, what was added, and what they are taken for then."""
    eps = COMPARED
    made = target.attacked(eps=eps)
    before, after = (scores(target.model, p).softmax(-1) for p in (target.pixels, made))
    fooled = after.argmax(-1) != target.targets
    shown = []
    for place in fooled.nonzero().flatten().tolist()[:GALLERY]:
        number = target.numbers[place]
        added = 0.5 + AMPLIFIED * (made[place] - target.pixels[place])
        rows = {"": target.pixels[place], "-added": added, "-attacked": made[place]}
        names = [bench.keep(f"attack-{number}{end}", image_of(p)) for end, p in rows.items()]
        shown.append(
            {
                "images": names,
                "before": _said(bench, before[place]),
                "after": _said(bench, after[place]),
                "eps": eps,
                "amplified": AMPLIFIED,
            }
        )
    return shown


def _said(bench: Bench, probabilities: Tensor) -> list[Any]:
    best = int(probabilities.argmax())
    return [bench.labels[best], round(float(probabilities[best]), 4)]


def checks(bench: Bench) -> Measured:
    """Whether the attacks can be trusted here, or the gradient is masked."""
    target = white_box(bench)
    settings = bench.settings
    by_eps = {k / 255: target.accuracy(target.attacked(eps=k / 255)) for k in (1, 4)}
    counts = (1, target.steps) if settings.quick else (1, 3, target.steps, 2 * target.steps)
    by_steps = {n: target.accuracy(target.attacked(eps=COMPARED, steps=n)) for n in counts}
    white = by_steps[target.steps]
    queries = settings.least(20, 100)
    black = target.accuracy(target.attacked("square", eps=COMPARED, steps=queries))
    loud = noise(target.pixels, "linf", COMPARED, settings.seed, 3, target.model, target.targets)
    found = attack_checks(
        n=target.n,
        clean=target.clean,
        by_eps=by_eps,
        by_steps=by_steps,
        large_eps=target.accuracy(target.attacked(eps=LARGE, steps=2 * target.steps)),
        white_box=white,
        black_box=black,
        noise=target.accuracy(loud),
        gradients=gradient_health(target.model, target.pixels, target.targets),
    )
    return Measured({"checks": found, "queries": queries})


def smallest(bench: Bench) -> Measured:
    """The smallest change of each image that was found to change its label."""
    target = white_box(bench)
    found = {
        "linf": smallest_eps(
            target.model,
            target.pixels,
            target.targets,
            norm="linf",
            steps=target.steps,
            high=16 / 255,
            tolerance=bench.settings.least(4, 1) / 10 / 255,
        )
    }
    if not bench.settings.quick:
        found["l2"] = smallest_eps(
            target.model,
            target.pixels,
            target.targets,
            norm="l2",
            steps=target.steps,
            high=4.0,
            tolerance=0.05,
        )
    column: list[float | None] = [None] * len(bench.images)
    for number, value in zip(target.numbers, found["linf"].values, strict=True):
        column[number] = None if value is None else round(255 * value, 3)
    return Measured({"n": target.n, "found": found}, {"smallest_eps_255": column})


def targeted(bench: Bench) -> Measured:
    """Whether an image can be made to be taken for a class of the attacker's choice."""
    target = white_box(bench)
    rng = np.random.default_rng(bench.settings.seed)
    away = rng.integers(1, target.model.classes, len(target.targets))
    wanted = (target.targets + torch.from_numpy(away)) % target.model.classes
    rows = []
    for level in (8,) if bench.settings.quick else (2, 8):
        made = target.attacked(eps=level / 255, steps=2 * target.steps, wanted=wanted)
        hit = scores(target.model, made).argmax(-1) == wanted
        rows.append({"level": level, "reached": float(hit.float().mean())})
    return Measured({"n": len(wanted), "rows": rows})


def transfers(bench: Bench) -> Measured:
    """Whether what was made against one template or model also fools another."""
    target = white_box(bench)
    models: dict[str, Attackable] = {"deployed": target.model}
    subject = bench.subject
    if isinstance(subject, ClassifierSubject) and subject.similarity_scale is not None:
        texts = subject.templates if len(subject.templates) > 1 else ()
        for text in texts[: bench.settings.least(1, 3)]:
            one = subject.with_prompts(templates=[text])
            models[text] = from_classifier(one.classifier)
    if bench.against is not None:
        models[bench.against.name] = attackable(bench.against)
    if len(models) < 2:
        raise InputError(
            "there is one template and one model: name another model with --against, or audit an "
            "ensemble"
        )
    eps = 2 / 255
    made = {
        name: attack(
            model,
            target.pixels,
            target.targets,
            method="pgd",
            norm="linf",
            eps=eps,
            steps=target.steps,
        )
        for name, model in models.items()
        if name != "deployed" and model.has_gradient and model.size == target.model.size
    }
    made = {"deployed": target.attacked(eps=eps)} | made
    return Measured({"eps": eps, "table": transfer(made, models, target.pixels, target.targets)})


def written_words(bench: Bench) -> Measured:
    """Whether a wrong word on the image is believed, beside a random string."""
    numbers = bench.some(bench.settings.least(16, 60)).tolist()
    images = [_room_for_words(open_image(bench.images[i]).convert("RGB")) for i in numbers]
    rng = np.random.default_rng(bench.settings.seed)
    away = rng.integers(1, len(bench.labels), len(numbers))
    truth = bench.targets[numbers]
    wrong = (truth + torch.from_numpy(away)) % len(bench.labels)
    words = [bench.labels[c] for c in wrong.tolist()]
    made = typographic_attack(images, words, seed=bench.settings.seed)
    rows = {}
    for name, own in (("clean", images), ("word", made.attacked), ("random", made.controls)):
        said = bench.subject.logits(list(own)).argmax(-1)
        right = int((said == truth).sum())
        rows[name] = {
            "accuracy": right / len(truth),
            "interval": wilson(right, len(truth)),
            "as_written": float((said == wrong).float().mean()),
        }
    shown = [
        {"image": bench.keep(f"word-{i}", made.attacked[i]), "word": words[i]}
        for i in range(min(3, len(words)))
    ]
    return Measured({"n": len(numbers), "rows": rows, "shown": shown})


def _room_for_words(image: Image.Image) -> Image.Image:
    """As large as an encoder sees it: on a small image no word could be read."""
    scale = max(1.0, SIDE / min(image.size))
    width, height = image.size
    return image.resize((round(scale * width), round(scale * height)), Image.Resampling.BICUBIC)


def corruptions(bench: Bench) -> Measured:
    """Accuracy under the fifteen common corruptions, at five severities."""
    language = not isinstance(bench.subject, ClassifierSubject)
    full = SCORE_ONLY if language else 32
    numbers = bench.some(bench.settings.least(min(8, full), full)).tolist()
    truth = bench.targets[numbers]
    images = [_fitted(open_image(bench.images[i])) for i in numbers]
    severities = (3,) if bench.settings.quick or language else (1, 2, 3, 4, 5)
    errors: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        for severity in severities:
            made = [corrupted(image, name, severity, i) for i, image in enumerate(images)]
            right = bench.subject.logits(made).argmax(-1) == truth
            errors.setdefault(name, []).append(1 - float(right.float().mean()))
    clean = 1 - float(bench.right[numbers].float().mean())
    return Measured(
        {
            "n": len(numbers),
            "severities": severities,
            "errors": errors,
            "clean_error": clean,
            "mean_error": mean_corruption_error(errors),
        }
    )


def _fitted(image: Image.Image) -> Image.Image:
    """RGB, the longer side at most 224 and the shorter one at least 32, as corruptions need it."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    width, height = image.size
    return image.resize((max(32, width), max(32, height)))


PARTS = (
    Part("attacks", "sizes", sizes, 100),
    Part("attacks", "checks", checks, 70),
    Part("attacks", "smallest", smallest, 60),
    Part("attacks", "targeted", targeted, 25),
    Part("attacks", "transfers", transfers, 35),
    Part("attacks", "written_words", written_words, 4),
    Part("attacks", "corruptions", corruptions, 80),
    Part("attacks", "remedies", remedies, 200),
)
