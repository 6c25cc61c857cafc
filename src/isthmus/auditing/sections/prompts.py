"""Section "prompts": how far the answer depends on the words around a label, and on the label's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.auditing.bench import Bench
from isthmus.auditing.measures.agreement import agreement_by_kind
from isthmus.auditing.measures.rewording import KINDS, left_out, rewordings
from isthmus.auditing.measures.templates_alone import (
    accuracy_by_size,
    ensemble_weights,
    template_weights,
    templates_alone,
)
from isthmus.auditing.measures.weighting import zero_shot_prompt_weights
from isthmus.auditing.measures.word_controls import (
    distractors,
    random_word_templates,
    template_lengths,
)
from isthmus.auditing.part import Measured, Part
from isthmus.auditing.subject import ClassifierSubject
from isthmus.classification.templates import SLOT, template_sets
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import InputError
from isthmus.evaluation.metrics import mcnemar, wilson

LABEL_KINDS = ("synonym", "case", "typo", "digits")
"""Changes of labels alone, for a language model, whose question has no place for one."""
MOST_ASKED = 60
"""Images that a language model is asked about again for each wording."""
DISTRACTORS = (1, 5, 20, 50)
FLIPS = 6
"""Images whose answer changed that the report shows."""


def templates(bench: Bench) -> Measured:
    """Every template by itself: accuracy and calibration, the best and the worst."""
    subject = bench.subject
    texts = _tried(bench)
    weights = _weights(bench, texts)
    if weights is not None and bench.features is not None:
        logits = _logits(bench, weights)
        targets = bench.targets
    else:
        chosen = bench.some(MOST_ASKED)
        images = [bench.images[i] for i in chosen.tolist()]
        logits = torch.stack(
            [subject.with_prompts(templates=[text]).logits(images) for text in texts]
        )
        targets = bench.targets[chosen]
    found = templates_alone(logits, targets, texts)
    deployed = len(subject.templates)
    return Measured({"alone": found, "deployed": deployed, "accuracy": _accuracy(bench)})


def ensembles(bench: Bench) -> Measured:
    """Accuracy by the size of the ensemble, and beside it templates of random words."""
    texts = _tried(bench)
    weights, features = _needed(bench, texts)
    scale = _scale(bench)
    draws = bench.settings.least(5, 20)
    sizes = accuracy_by_size(weights, features, bench.targets, scale, draws=draws)
    control = []
    for seed in range(bench.settings.least(2, 5)):
        lengths = [max(1, n) for n in template_lengths(texts)]
        words = random_word_templates(len(texts), lengths, seed, labels=bench.labels)
        made = template_weights(_encoder(bench), bench.labels, words)
        control.append(accuracy_by_size(made, features, bench.targets, scale, draws=draws))
    means = [sum(run[i].accuracy for run in control) / len(control) for i in range(len(control[0]))]
    return Measured({"sizes": sizes, "random_words": means, "seeds": len(control)})


def wordings(bench: Bench) -> Measured:
    """How often the answer changes when nothing but the wording does."""
    subject = bench.subject
    worded = bench.subject.encoder is not None
    kinds: Sequence[Any] = KINDS if worded else LABEL_KINDS
    asked = subject.templates if worded else ("{}",)
    made = rewordings(bench.labels, list(asked), kinds, bench.settings.seed)
    if not made:
        raise InputError("no label or template can be put in other words that are known")
    chosen = torch.arange(len(bench.images)) if worded else bench.some(MOST_ASKED)
    images = [bench.images[i] for i in chosen.tolist()]
    rows = [bench.predicted[chosen]]
    for one in made:
        other = subject.with_prompts(
            labels=one.labels,
            templates=one.templates if worded else None,
        )
        rows.append(other.logits(images).argmax(dim=-1))
    predictions = torch.stack(rows)
    targets = bench.targets[chosen]
    by_kind = agreement_by_kind(
        predictions, [one.kind for one in made], targets, draws=bench.settings.draws
    )
    every = agreement_by_kind(
        predictions, ["all"] * len(made), targets, draws=bench.settings.draws
    )["all"]
    named = [
        {
            "kind": one.kind,
            "name": one.name,
            "changed": one.changed,
            "of": one.of,
            "example": one.prompts()[0][0] if worded else one.labels[0],
            "flipped": float((row != rows[0]).float().mean()),
            "accuracy": float((row == targets).float().mean()),
        }
        for one, row in zip(made, rows[1:], strict=True)
    ]
    flips = (predictions[1:] != predictions[0]).float().mean(dim=0)
    whole: list[float | None] = [None] * len(bench.images)
    for place, share in zip(chosen.tolist(), flips.tolist(), strict=True):
        whole[place] = round(share, 4)
    return Measured(
        {
            "all": every,
            "by_kind": by_kind,
            "wordings": named,
            "left_out": left_out(bench.labels, list(asked), kinds),
            "shown": _flipped(bench, chosen, predictions, named),
        },
        {"flips": whole},
    )


def _flipped(
    bench: Bench, chosen: Tensor, predictions: Tensor, named: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Images that were right and that a wording takes for something else."""
    right = predictions[0] == bench.targets[chosen]
    often = ((predictions[1:] != predictions[0]).float().mean(dim=0) * right).tolist()
    shown = []
    for place in sorted(range(len(often)), key=lambda i: -often[i])[:FLIPS]:
        if often[place] == 0:
            break
        number = int(chosen[place])
        which = int((predictions[1:, place] != predictions[0, place]).nonzero()[0])
        shown.append(
            {
                "image": bench.keep(f"image-{number}", bench.images[number]),
                "before": bench.labels[int(predictions[0, place])],
                "after": bench.labels[int(predictions[1 + which, place])],
                "kind": named[which]["kind"],
                "example": named[which]["example"],
                "flips": often[place],
            }
        )
    return shown


def more_labels(bench: Bench) -> Measured:
    """What further labels, of things that are not there, take away."""
    names = distractors(bench.labels, max(DISTRACTORS), bench.settings.seed)
    worded = bench.subject.encoder is not None
    chosen = torch.arange(len(bench.images)) if worded else bench.some(MOST_ASKED)
    images = [bench.images[i] for i in chosen.tolist()]
    other = bench.subject.with_prompts(labels=[*bench.labels, *names])
    logits = other.logits(images).float()
    targets, known = bench.targets[chosen], len(bench.labels)
    rows = []
    for count in (0, *DISTRACTORS):
        said = logits[:, : known + count].argmax(dim=-1)
        right = int((said == targets).sum())
        taken = float((said >= known).float().mean())
        rows.append(
            {
                "labels": count,
                "accuracy": right / len(targets),
                "interval": wilson(right, len(targets)),
                "taken": taken,
            }
        )
    return Measured({"rows": rows, "names": names})


def remedies(bench: Bench) -> Measured:
    """The ensemble, weighted templates and a learned context, on images that taught none of them.

    The first row is one template, "a photo of a {}.", so that each gain has the same beginning.
    """
    texts = _tried(bench)
    weights, features = _needed(bench, texts)
    fit, test = bench.halves
    targets = bench.targets[test]
    scale = _scale(bench)
    encoder = _encoder(bench)

    def said(classes: Tensor) -> Tensor:
        return (features[test] @ classes.T).argmax(dim=-1)

    plain = template_weights(encoder, bench.labels, ["a photo of a {}."])[0]
    words = random_word_templates(
        len(texts), [max(1, n) for n in template_lengths(texts)], 0, labels=bench.labels
    )
    random = ensemble_weights(template_weights(encoder, bench.labels, words))
    weighted = zero_shot_prompt_weights(weights, features[fit], scale)
    answers = {
        "one template": said(plain),
        "random words": said(random),
        "ensemble": said(ensemble_weights(weights)),
        "weighted ensemble": said(weighted.class_weights),
    }
    learned = _learned_context(bench, encoder)
    if learned is not None:
        answers["learned context"] = learned
    base = answers["one template"] == targets
    rows = []
    for name, answer in answers.items():
        good = answer == targets
        gained, lost = int((good & ~base).sum()), int((~good & base).sum())
        rows.append(
            {
                "name": name,
                "accuracy": float(good.float().mean()),
                "interval": wilson(int(good.sum()), len(good)),
                "gain": float(good.float().mean() - base.float().mean()),
                "p": mcnemar(gained, lost),
            }
        )
    order = weighted.weights.argsort(descending=True)[:5].tolist()
    top = [{"template": texts[i], "weight": float(weighted.weights[i])} for i in order]
    return Measured({"n": len(test), "rows": rows, "weights": top})


def _learned_context(bench: Bench, encoder: Any) -> Tensor | None:
    """What a context says that was learned on the first half; None in a quick audit."""
    fit, test = bench.halves
    seen = set(bench.targets[fit].tolist())
    if bench.settings.quick or len(seen) < len(bench.labels):
        return None
    assert bench.features is not None
    learned = ZeroShotClassifier(encoder, list(bench.labels), "one", cache=False)
    names = [bench.labels[int(c)] for c in bench.targets[fit]]
    learned.fit(bench.features[fit], names, method="coop", seed=bench.settings.seed)
    return torch.from_numpy(learned.decision_function(bench.features[test])).argmax(dim=-1)


# --- What several parts need --------------------------------------------------------------------


def _tried(bench: Bench) -> list[str]:
    """The deployed templates; with one alone, the published set of seven beside it."""
    texts = list(bench.subject.templates)
    if not texts:
        raise InputError("each label has descriptions of its own: there are no templates to vary")
    if len(texts) == 1 and SLOT in texts[0]:
        texts += [t for t in template_sets()["imagenet-7"]["templates"] if t not in texts]
    return texts


def _encoder(bench: Bench) -> Any:
    encoder = bench.subject.encoder
    if encoder is None:
        raise InputError("templates around a label need a dual encoder; a language model has none")
    return encoder


def _scale(bench: Bench) -> float:
    scale = bench.subject.similarity_scale
    if scale is None:
        raise InputError("a few-shot head replaced the similarities: templates have no say")
    return scale


def _weights(bench: Bench, texts: Sequence[str]) -> Tensor | None:
    if bench.subject.encoder is None or bench.subject.similarity_scale is None:
        return None
    return template_weights(bench.subject.encoder, bench.labels, list(texts))


def _needed(bench: Bench, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    weights, features = template_weights(_encoder(bench), bench.labels, list(texts)), bench.features
    _scale(bench)  # says so where templates have no say
    assert features is not None
    return weights, features


def _logits(bench: Bench, weights: Tensor) -> Tensor:
    """Logits (T, n, C) of each template alone."""
    assert bench.features is not None
    subject = bench.subject
    bias = 0.0
    if isinstance(subject, ClassifierSubject) and subject.encoder.logit_bias is not None:
        bias = float(subject.encoder.logit_bias.detach())
    return torch.einsum("nd,tcd->tnc", bench.features, weights) * _scale(bench) + bias


def _accuracy(bench: Bench) -> float:
    return float(bench.right.float().mean())


PARTS = (
    Part("prompts", "templates", templates, 4),
    Part("prompts", "ensembles", ensembles, 6),
    Part("prompts", "wordings", wordings, 20),
    Part("prompts", "more_labels", more_labels, 3),
    Part("prompts", "remedies", remedies, 20),
)
