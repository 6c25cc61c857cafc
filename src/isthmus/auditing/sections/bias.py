"""Section "bias": which classes and groups the subject serves worse, and what imbalance costs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from isthmus.auditing.bench import Bench
from isthmus.auditing.measures.associations import association, shape_bias
from isthmus.auditing.measures.classes import class_measures, pixel_baseline
from isthmus.auditing.measures.frequencies import caption_frequencies, frequency_correlation
from isthmus.auditing.measures.groups import compare_columns, group_name
from isthmus.auditing.measures.imbalance import imbalance_study
from isthmus.auditing.measures.ranking import ranking_skew
from isthmus.auditing.part import Measured, Part
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson
from isthmus.media.image import open_image

BASELINE_SIDE = 16
RETRIEVED = 10
"""Results of a search whose groups are looked at."""
LEAST_TRAINING = 8
"""Images that a class needs in the half that the imbalance study trains on."""


def classes(bench: Bench) -> Measured:
    """Recall of every class, the worst, what is taken for what; and simple baselines."""
    found = class_measures(
        bench.targets, bench.predicted, bench.labels, draws=bench.settings.draws, seed=0
    )
    for pair in found.confusions:
        for number in pair.images:
            bench.keep(f"image-{number}", bench.images[number])
    probability = bench.logits.softmax(dim=-1).amax(dim=-1)
    columns = {
        "label": [bench.labels[c] for c in bench.data.targets],
        "predicted": [bench.labels[c] for c in bench.predicted.tolist()],
        "right": bench.right.tolist(),
        "probability": [round(p, 6) for p in probability.tolist()],
    }
    return Measured({"measures": found, "templates": bench.subject.templates}, columns)


def pixels(bench: Bench) -> Measured:
    """Logistic regression on small pixels, beside the subject on the same images."""
    train, test = bench.halves
    small = torch.stack([_small(bench, i) for i in range(len(bench.images))])
    said = pixel_baseline(small[train], bench.targets[train], small[test])
    right = int((torch.as_tensor(said) == bench.targets[test]).sum())
    own = int(bench.right[test].sum())
    n = len(test)
    told = {"n": n, "trained_on": len(train), "accuracy": right / n, "interval": wilson(right, n)}
    return Measured({**told, "subject": own / n, "subject_interval": wilson(own, n)})


def _small(bench: Bench, number: int) -> Tensor:
    image = open_image(bench.images[number]).resize((BASELINE_SIDE, BASELINE_SIDE))
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255


def groups(bench: Bench) -> Measured:
    """Gaps between the groups of each column and their intersections, with permutation tests."""
    columns = {name: bench.data.groups[name] for name in bench.settings.groups}
    if not columns:
        raise InputError(
            "no groups were given: name columns of the data with --groups, such as --groups camera"
        )
    found = compare_columns(
        bench.targets,
        bench.predicted,
        columns,
        len(bench.labels),
        permutations=bench.settings.draws,
        seed=bench.settings.seed,
    )
    return Measured({"columns": found}, {f"group:{name}": own for name, own in columns.items()})


def frequency(bench: Bench) -> Measured:
    """Whether classes that the training captions name more often are recognised better."""
    if not bench.settings.captions:
        raise InputError(
            "the training captions are not known: give a file of them, one a line, with --captions"
        )
    counts = caption_frequencies(bench.settings.captions, bench.labels)
    measures = class_measures(bench.targets, bench.predicted, bench.labels, draws=1)
    recalls = [c.recall for c in measures.classes]
    found = frequency_correlation(
        [counts[label] for label in bench.labels], recalls, permutations=bench.settings.draws
    )
    told = {label: [counts[label], r] for label, r in zip(bench.labels, recalls, strict=True)}
    return Measured({"correlation": found, "classes": told})


def retrieval(bench: Bench) -> Measured:
    """Whether searching for a label brings some groups before others."""
    features, encoder = bench.features, bench.subject.encoder
    if features is None or encoder is None:
        raise InputError("ranking skew needs a dual encoder, whose scores rank images")
    if not bench.settings.groups:
        raise InputError("no groups were given: name columns of the data with --groups")
    told = {}
    for column in bench.settings.groups:
        names = [group_name(value) for value in bench.data.groups[column]]
        known = [i for i, name in enumerate(names) if name is not None]
        searches = {}
        for number, label in enumerate(bench.labels):
            order = bench.logits[known, number].argsort(descending=True, stable=True).tolist()
            ranked = [str(names[known[i]]) for i in order]
            k = min(RETRIEVED, len(ranked))
            searches[label] = ranking_skew(ranked, k, permutations=bench.settings.draws // 4)
        worst = max(searches, key=lambda label: searches[label].ndkl)
        told[column] = {
            "k": RETRIEVED,
            "mean_max_skew": float(np.mean([s.max_skew for s in searches.values()])),
            "mean_max_skew_by_chance": float(
                np.mean([s.max_skew_by_chance for s in searches.values()])
            ),
            "mean_ndkl": float(np.mean([s.ndkl for s in searches.values()])),
            "mean_ndkl_by_chance": float(np.mean([s.ndkl_by_chance for s in searches.values()])),
            "worst": worst,
            "worst_skew": searches[worst],
        }
    return Measured({"columns": told})


def associations(bench: Bench) -> Measured:
    """Association tests between sets of images and sets of words (iEAT)."""
    features, encoder = bench.features, bench.subject.encoder
    if not bench.settings.associations:
        raise InputError(
            "no association was asked for: give a TOML file with --associations "
            "(docs/audit.md shows one)"
        )
    if features is None or encoder is None:
        raise InputError("an association test needs a dual encoder, which has vectors")
    told = {}
    for asked in bench.settings.associations:
        first, second = (_chosen(bench, who) for who in (asked.first, asked.second))
        words = [encoder.encode_texts(list(own)).float() for own in (asked.a, asked.b)]
        told[asked.name] = {
            "asked": asked,
            "images": [len(first), len(second)],
            "found": association(
                features[first], features[second], *words, seed=bench.settings.seed
            ),
        }
    return Measured({"tests": told})


def _chosen(bench: Bench, who: str) -> Tensor:
    """Images of a label, or of a group: "cat", or "camera=old"."""
    column, _, value = who.partition("=")
    if value:
        if column not in bench.data.groups:
            raise InputError(f'an association names the column "{column}": add it to --groups')
        held = [group_name(v) == value for v in bench.data.groups[column]]
    elif who in bench.labels:
        held = [bench.labels[c] == who for c in bench.data.targets]
    else:
        raise InputError(f'an association names "{who}": expected a label, or COLUMN=GROUP')
    if not any(held):
        raise InputError(f'there is no image of "{who}", which an association names')
    return torch.tensor(held).nonzero().flatten()


def textures(bench: Bench) -> Measured:
    """Whether shape or texture decides, on images whose shape and texture are of two labels."""
    column = bench.settings.textures
    if not column:
        raise InputError(
            "no cue-conflict images were given: name the column with the label whose texture an "
            "image wears with --textures, such as --textures texture"
        )
    number = {label: c for c, label in enumerate(bench.labels)}
    worn = [number.get(str(name), -1) for name in bench.data.groups[column]]
    known = [i for i, c in enumerate(worn) if c >= 0]
    if not known:
        raise InputError(
            f'no image has a texture of a label in the column "{column}": expected the labels, '
            f"such as {bench.labels[0]}"
        )
    found = shape_bias(
        bench.targets[known], [worn[i] for i in known], bench.predicted[known], bench.labels
    )
    return Measured(
        {"found": found, "left_out": len(worn) - len(known)},
        {"texture": bench.data.groups[column]},
    )


def imbalance(bench: Bench) -> Measured:
    """The same head trained at several imbalances, and what re-balancing brings back."""
    features = bench.features
    if features is None:
        raise InputError("the imbalance study trains a head on features, which need a dual encoder")
    train, test = bench.halves
    counts = Counter(bench.targets[train].tolist())
    enough = sorted(c for c, n in counts.items() if n >= LEAST_TRAINING)
    if len(enough) < 3:
        raise InputError(
            f"the imbalance study needs three classes of {2 * LEAST_TRAINING} images or more, got "
            f"{len(enough)}: give more images of each class"
        )
    number = {c: i for i, c in enumerate(enough)}
    chosen = []
    for half in (train, test):
        own = [i for i in half.tolist() if int(bench.targets[i]) in number]
        chosen.append((features[own], [number[int(bench.targets[i])] for i in own]))
    seeds = tuple(range(bench.settings.least(1, 3)))
    study = imbalance_study(*chosen[0], *chosen[1], seeds=seeds)
    return Measured({"study": study, "labels": [bench.labels[c] for c in enough]})


PARTS = (
    Part("bias", "classes", classes, 6),
    Part("bias", "pixels", pixels, 4),
    Part("bias", "groups", groups, 2),
    Part("bias", "frequency", frequency),
    Part("bias", "retrieval", retrieval, 2),
    Part("bias", "associations", associations, 2),
    Part("bias", "textures", textures),
    Part("bias", "imbalance", imbalance, 8),
)
