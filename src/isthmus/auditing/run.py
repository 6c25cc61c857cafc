"""`audit`: a model and labelled images in; the limits of CLIP measured, with remedies, out."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.auditing.bench import Asked, Bench, Settings
from isthmus.auditing.data import LabelledImages, labelled_images, read_labelled
from isthmus.auditing.demo import demo_images
from isthmus.auditing.language_subject import LanguageSubject
from isthmus.auditing.part import Done, Kept, Part, plain, run_all
from isthmus.auditing.report.page import write_report
from isthmus.auditing.sections import attacks, bias, confidence, prompts
from isthmus.auditing.subject import ClassifierSubject, Subject
from isthmus.auditing.verdict import verdict_of
from isthmus.classification.calibration import Calibration
from isthmus.classification.templates import Templates
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.data.folders import images_of
from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.files import write_json, write_text
from isthmus.media.image import Source
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.saving import load
from isthmus.model.vlm import VisionLanguageModel
from isthmus.reports.progress import Progress

SCHEMA = "isthmus-audit/1"
RESULTS, RECORDS = "results.json", "records.jsonl"
SECTIONS: dict[str, tuple[Part, ...]] = {
    "bias": bias.PARTS,
    "prompts": prompts.PARTS,
    "attacks": attacks.PARTS,
    "confidence": confidence.PARTS,
}
QUESTION = "What is in the picture?"
LIGHT = ("bias", "prompts", "confidence")
"""Sections that the model of `against` is measured with as well."""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        results: Everything, as in `results.json`; see docs/audit.md.
        records: A row for each image, as in `records.jsonl`.
        folder: Where it was written; None if nowhere.
    """

    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    folder: Path | None

    @property
    def verdict(self) -> Mapping[str, Any]:
        """What a person reads in ten seconds."""
        told: Mapping[str, Any] = self.results["verdict"]
        return told


def audit(
    model: Any,
    data: str | Path | LabelledImages | tuple[Sequence[Source], Sequence[str]] | None = None,
    *,
    labels: Sequence[str] | None = None,
    templates: Templates | None = None,
    question: str = QUESTION,
    calibration: str | Path | Calibration | None = None,
    against: Any = None,
    groups: Sequence[str] = (),
    textures: str = "",
    sections: Sequence[str] = tuple(SECTIONS),
    outside: str | Path | Sequence[Source] = (),
    captions: str | Path | Sequence[str] = (),
    associations: str | Path | Sequence[Asked] = (),
    label_column: str | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    quick: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> Audit:
    """Measures the limits of a classifier: bias, prompts, attacks, and what its confidence says.

    Args:
        model: A `ZeroShotClassifier` as it is deployed; a dual encoder or a vision-language model,
            or what `load` takes; or a `Subject` of your own.
        data: Labelled images: a folder of class folders, a JSONL or CSV file, images with their
            classes, or `LabelledImages`. None is the demonstration: shapes that are drawn.
        labels: The labels, where there are more than the data has classes.
        templates: As for `ZeroShotClassifier`; a classifier has its own.
        question: What a vision-language model is asked.
        calibration: As for `ZeroShotClassifier`, or its file.
        against: Another model of the same labels, to stand beside it.
        groups: Columns of the data whose groups are compared.
        textures: The column with the label whose texture an image wears, of cue-conflict images.
        sections: Of `SECTIONS`.
        outside: A folder of images of other things, or such images.
        captions: A file of the captions that the model was trained on, or the captions.
        associations: A TOML file of association tests, or such tests.
        label_column: The column with the class, if it is called otherwise.
        split: Only rows of this split.
        root: What paths of images in a file are relative to.
        quick: Fewer draws, images and attacks.
        seed: Seed of everything that is drawn.
        out: Folder for the report, results and records. An audit that was stopped goes on there.
        quiet: Show no progress.
        device: Where a model that is named is loaded to; see `load`.
        dtype: Its data type likewise.

    Raises:
        ConfigError: If a section is unknown, or `out` holds another audit.
        InputError: If there are no usable images or fewer than two labels.
        CheckpointError: If a model cannot be loaded.

    Example:
        >>> import isthmus as im
        >>> encoder = im.DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> found = audit(encoder, sections=["confidence"], quick=True)
        >>> found.results["schema"], found.results["data"]["images"]
        ('isthmus-audit/1', 60)
    """
    for name in sections:
        if name not in SECTIONS:
            raise ConfigError(f'unknown section "{name}": {suggestion(name, SECTIONS)}')
    columns = [*groups, *([textures] if textures else [])]
    images = _images(data, labels, columns, label_column, split, root)
    if data is None:
        groups = groups or tuple(images.groups)
    for column in columns:
        if column not in images.groups:
            known = suggestion(column, images.groups) if images.groups else "they have none"
            raise InputError(f'the images have no groups "{column}": {known}')
    # gradients are of float32, so what they attack is too
    loading = {"device": device, "dtype": None if dtype == "auto" else dtype}
    if isinstance(calibration, str | Path):
        calibration = Calibration.load(calibration)
    subject = subject_of(model, images.labels, templates, question, calibration, **loading)
    other = None
    if against is not None:
        other = subject_of(against, images.labels, None, question, None, **loading)
        if other.labels != subject.labels:
            raise InputError("both models need the same labels in the same order")
    settings = Settings(
        quick=quick,
        seed=seed,
        groups=tuple(groups),
        textures=textures,
        outside=_outside(outside),
        captions=_captions(captions),
        associations=_associations(associations),
    )
    folder = None if out is None else Path(out)
    bench = Bench(subject, images, settings, other, folder)
    parts = [part for name in SECTIONS if name in sections for part in SECTIONS[name]]
    told = _told(bench, sections)
    done = _run(parts, bench, Kept(folder, told), quiet, "Auditing")
    beside = None
    if other is not None:
        bench_of_other = Bench(other, images, settings, None, None)
        light = [p for p in parts if p.section in LIGHT]
        kept = Kept(None if folder is None else folder / "against", told)
        beside = _run(light, bench_of_other, kept, quiet, f"Auditing {other.name}")
    return _finished(bench, done, beside, told, folder)


def subject_of(
    model: Any,
    labels: Sequence[str],
    templates: Templates | None = None,
    question: str = QUESTION,
    calibration: Calibration | None = None,
    **loading: Any,
) -> Subject:
    """What is audited, of anything that `audit` takes as a model.

    Raises:
        InputError: If a classifier has other labels than the data.
    """
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    if isinstance(model, str | Path):
        name, model = Path(name).name or name, load(model, **loading)
    if isinstance(model, ZeroShotClassifier):
        own = [str(label) for label in model.classes_]
        if own != list(labels):
            raise InputError(
                f"the classifier has {len(own)} labels and the data {len(labels)}, or in another "
                "order: pass labels= with the classifier's to the data"
            )
        return ClassifierSubject(model, model.model.name)
    if isinstance(model, DualEncoder):
        made = ZeroShotClassifier(
            model, list(labels), templates or "imagenet-7", calibration=calibration
        )
        return ClassifierSubject(made, name if name != "DualEncoder" else model.name)
    if isinstance(model, VisionLanguageModel):
        if calibration is not None:
            raise ConfigError("a calibration is a dual encoder's: leave it out")
        return LanguageSubject(model, tuple(labels), (question,), name)
    made_by_hand: Subject = model
    return made_by_hand


def _images(
    data: Any,
    labels: Sequence[str] | None,
    groups: Sequence[str],
    label_column: str | None,
    split: str | None,
    root: str | Path | None,
) -> LabelledImages:
    if data is None:
        return demo_images()
    if isinstance(data, LabelledImages):
        return data
    if isinstance(data, tuple):
        return labelled_images(*data, labels=labels)
    return read_labelled(
        data, labels=labels, groups=groups, label=label_column, split=split, root=root
    )


def _outside(given: str | Path | Sequence[Source]) -> tuple[Source, ...]:
    return tuple(images_of([given] if isinstance(given, str | Path) else list(given)))


def _captions(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(given, str | Path):
        return tuple(given)
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the captions in {given}: {error}") from error
    return tuple(line for line in lines if line.strip())


def _associations(given: str | Path | Sequence[Asked]) -> tuple[Asked, ...]:
    if not isinstance(given, str | Path):
        return tuple(given)
    try:
        told = tomllib.loads(Path(given).read_text(encoding="utf-8"))["association"]
        return tuple(
            Asked(
                str(one.get("name", f"{one['first']} or {one['second']}")),
                str(one["first"]),
                str(one["second"]),
                tuple(map(str, one["a"])),
                tuple(map(str, one["b"])),
            )
            for one in told
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read the associations in {given} ({error}): expected [[association]] tables "
            "with first, second, a and b"
        ) from error


# --- Running and writing --------------------------------------------------------------------------


def _told(bench: Bench, sections: Sequence[str]) -> dict[str, Any]:
    """What decides the results, for a folder to be gone on with."""
    settings = bench.settings
    return {
        "schema": SCHEMA,
        "model": bench.subject.identity(),
        "against": None if bench.against is None else bench.against.identity(),
        "data": bench.data.fingerprint(),
        "sections": sorted(sections),
        "quick": settings.quick,
        "seed": settings.seed,
        "groups": {name: bench.data.groups[name] for name in settings.groups},
        "textures": bench.data.groups[settings.textures] if settings.textures else (),
        "outside": len(settings.outside),
        "captions": len(settings.captions),
        "associations": settings.associations,
    }


def _run(parts: Sequence[Part], bench: Bench, kept: Kept, quiet: bool, what: str) -> list[Done]:
    """Runs parts under a bar whose time left goes by their costs."""
    done = []
    total = round(sum(part.cost for part in parts))
    with Progress(what, total, quiet=quiet) as bar:
        if parts:
            bar.say(parts[0].id)
        for place, (part, found) in enumerate(run_all(parts, bench, kept)):
            done.append(found)
            bar.advance(round(part.cost))
            if place + 1 < len(parts):
                bar.say(parts[place + 1].id)
    return done


def _finished(
    bench: Bench,
    done: Sequence[Done],
    beside: Sequence[Done] | None,
    told: Mapping[str, Any],
    folder: Path | None,
) -> Audit:
    found = _by_section(done)
    results = plain(
        {
            "schema": SCHEMA,
            "model": {"name": bench.subject.name, **bench.subject.identity()},
            "data": {
                "images": len(bench.data),
                "labels": bench.labels,
                "left_out": bench.data.left_out,
                "fingerprint": bench.data.fingerprint(),
            },
            "settings": {k: told[k] for k in ("quick", "seed", "sections")}
            | {"groups": list(told["groups"])},
            "sections": found,
            "missing": {d.part: d.missing for d in done if d.missing},
        }
    )
    if beside is not None and bench.against is not None:
        results["against"] = {
            "name": bench.against.name,
            "sections": _by_section(beside),
            "missing": {d.part: d.missing for d in beside if d.missing},
        }
    results["verdict"] = plain(verdict_of(results))
    records = _records(bench, done)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS, results)
        lines = [json.dumps(row, ensure_ascii=False) for row in records]
        write_text(folder / RECORDS, "\n".join(lines) + "\n")
        write_report(results, folder)
    return Audit(results, records, folder)


def _by_section(done: Sequence[Done]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in done:
        section, _, name = one.part.partition("/")
        if not one.missing:
            found.setdefault(section, {})[name] = one.values
    return found


def _records(bench: Bench, done: Sequence[Done]) -> list[dict[str, Any]]:
    """A row for each image, with what the parts say of it."""
    columns: dict[str, Sequence[Any]] = {}
    for one in done:
        columns |= one.columns
    rows = []
    for number, file in enumerate(bench.data.files):
        named = str(file) if isinstance(file, str | Path) else None
        row: dict[str, Any] = {"number": number, "image": named}
        rows.append(row | {name: own[number] for name, own in columns.items()})
    return rows
