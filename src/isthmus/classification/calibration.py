"""Calibration: what makes a classifier's probabilities mean something, and a file of it.

Of all images whose label gets a probability of 0.8, about 80% should be right. A calibration is
softmax(scale * logits + bias), fitted on labelled images by `isthmus.classification.scaling`. It
belongs to one model, its templates and a few-shot head, if any, and is refused for others.

Letters: B images, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from isthmus.classification.identity import Identity, templates_identity
from isthmus.classification.scaling import (
    Metrics,
    fit_temperature,
    fit_vector,
    measure,
    precision_threshold,
    precisions,
)
from isthmus.classification.templates import Templates, checked_labels
from isthmus.config.base import Config, Count, Range, Share, from_mapping
from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.files import write_json

CalibrationMethod = Literal["temperature", "vector"]
CALIBRATION_METHODS = ("temperature", "vector")
HEADER = {"format_version": 1, "kind": "calibration"}
"""How a file begins; the version rises when its fields change their meaning."""
HEAD_TOLERANCE = 1e-3
"""How far apart, and by which share, logits of one few-shot head may be on two machines."""

Finite = Annotated[float, Range()]


@dataclass(frozen=True, kw_only=True)
class Calibration(Config):
    """A fitted rescaling of logits, softmax(scale * logits + bias), and what it was fitted on.

    `ZeroShotClassifier.calibrate` makes one; `ZeroShotClassifier(calibration=...)` uses it.

    Attributes:
        method: "temperature" or "vector".
        labels: The labels it was fitted with; numbers for each label are in their order.
        scale: Factor on logits: the one number 1 / T, or one for each label.
        bias: What is added to them then: the one number 0, or one for each label.
        model: The dual encoder with its own temperature and bias.
        templates: The templates.
        n: How many labelled images it was fitted on.
        before: The quality of softmax(logits) on those images.
        after: The same, calibrated. On other images it is a little worse.
        head: What a few-shot head makes of one fixed vector, a logit for each label, which tells
            heads apart; empty for a zero-shot classifier.
        threshold: Below this probability an image is "none of these"; None for no threshold.
        coverage: The share of those images that reach the threshold; the fewer they are, the less
            sure is the precision that it was chosen for. None for no threshold.

    Raises:
        ConfigError: If a value has another type, is out of range, or is missing for a label.

    Example:
        >>> classifier = ZeroShotClassifier(
        ...     "tiny-clip", ["cat", "dog"], calibration=Calibration.load("calibration.json")
        ... )  # doctest: +SKIP
    """

    method: CalibrationMethod
    labels: tuple[str, ...]
    scale: tuple[Finite, ...]
    bias: tuple[Finite, ...]
    model: Identity
    templates: Identity
    n: Count
    before: Metrics
    after: Metrics
    head: tuple[Finite, ...] = ()
    threshold: Share | None = None
    coverage: Share | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_labels(self.labels)
        labels = len(self.labels)
        expected = labels if self.method == "vector" else 1
        for name, counts in (
            ("scale", (expected,)),
            ("bias", (expected,)),
            ("head", (0, labels)),
        ):
            got = len(getattr(self, name))
            if got not in counts:
                raise ConfigError(
                    f"Calibration.{name} has {got} numbers: expected "
                    f'{" or ".join(map(str, counts))} for {labels} labels and "{self.method}"'
                )

    @property
    def temperature(self) -> float | None:
        """The temperature T that divides logits; None with vector scaling."""
        return 1 / self.scale[0] if self.method == "temperature" else None

    def apply(self, logits: Tensor) -> Tensor:
        """Calibrated logits (B, K), float64; their softmax are the probabilities.

        Args:
            logits: Logits (B, K), in the order of `labels`.
        """
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return logits.double() * scale + torch.tensor(self.bias, dtype=torch.float64)

    def for_labels(self, labels: Sequence[str], *, threshold: float | None = None) -> Calibration:
        """The same calibration for labels in another order, for some of them, or for others.

        A temperature holds for any labels. Scales and biases of labels hold for these labels and
        for any part of them: softmax over a part is the distribution given that one of the part
        is right.

        Args:
            labels: The labels of a classifier.
            threshold: The classifier's own threshold, which replaces the calibration's.

        Raises:
            InputError: If a label has no scale and bias, or no logit of a few-shot head. Also if
                there are other labels, or fewer, and the threshold was chosen among all of them.
        """
        place = {label: i for i, label in enumerate(self.labels)}
        new = [label for label in labels if label not in place]
        if new and (self.method == "vector" or self.head):
            raise InputError(
                f'the calibration has no numbers for the label "{new[0]}": '
                f"{suggestion(new[0], self.labels)}; calibrate with all labels"
            )
        odd = [f'"{label}" is new' for label in new]
        odd += [f'"{label}" is missing' for label in self.labels if label not in set(labels)]
        if odd and self.threshold is not None and threshold is None:
            raise InputError(
                f"the calibration's threshold was chosen among other labels: {odd[0]}; calibrate "
                "with the new labels, or set a threshold"
            )

        def numbers(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[place[label]] for label in labels)

        vector = self.method == "vector"
        return replace(
            self,
            labels=tuple(labels),
            scale=numbers(self.scale) if vector else self.scale,
            bias=numbers(self.bias) if vector else self.bias,
            head=numbers(self.head) if self.head else (),
            threshold=self.threshold if threshold is None else threshold,
            coverage=self.coverage if threshold is None else None,
        )

    def check(
        self,
        *,
        model: Identity | None = None,
        templates: Identity | None = None,
        head: Sequence[float] | None = None,
    ) -> None:
        """Refuses a classifier that is not the one that was calibrated.

        Args:
            model: Its model; None is not compared, here as below.
            templates: Its templates.
            head: Logits of its few-shot head; empty if it has none.

        Raises:
            InputError: If one differs.
        """
        for what, got, expected in (
            ("model", model, self.model),
            ("templates", templates, self.templates),
        ):
            if got is not None and got.fingerprint != expected.fingerprint:
                detail = " in the same dtype" if what == "model" else ""
                raise InputError(
                    f"the calibration is for the {what} {expected}: got {got}; "
                    f"use the same {what}{detail}, or calibrate again"
                )
        if head is None:
            return
        if bool(head) != bool(self.head):
            raise InputError(
                "the calibration is for the zero-shot classifier: got one that was fitted; fit "
                "first, then calibrate"
                if head
                else "the calibration is for a classifier that was fitted on labelled images: got "
                "a zero-shot one; fit it on the same images first"
            )
        if len(head) != len(self.head) or not np.allclose(
            head, self.head, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE
        ):
            raise InputError(
                "the calibration is for another few-shot head: fit on the same images by the same "
                "method, or calibrate again"
            )

    def save(self, path: str | Path) -> Path:
        """Writes it as JSON: `format_version`, `kind`, and the attributes by name.

        Args:
            path: The file.

        Returns:
            The file.

        Raises:
            OutputError: If it cannot be written.
        """
        write_json(Path(path), {**HEADER, **asdict(self)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads what `save` wrote; every number is the same to the last bit.

        Raises:
            InputError: If it cannot be read or is no calibration; if a key is missing or unknown,
                or a value out of range.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the calibration in {path}: {error}") from error
        if not isinstance(told, dict) or told.get("kind") != HEADER["kind"]:
            raise InputError(f"{path} is no calibration: expected a file from Calibration.save")
        if (version := told.get("format_version")) != HEADER["format_version"]:
            raise InputError(
                f"{path} has format version {version}: expected {HEADER['format_version']}; "
                "calibrate again with this version of Isthmus"
            )
        return from_mapping(cls, {k: v for k, v in told.items() if k not in HEADER}, str(path))


def calibration_for(
    calibration: Any,
    labels: Sequence[str],
    templates: Templates,
    *,
    multi_label: bool,
    threshold: float | None,
) -> Calibration:
    """A calibration as a new classifier uses it, checked as far as needs no model.

    Args:
        calibration: What it was given.
        labels: Its labels.
        templates: Its templates.
        multi_label: Whether an image may have several labels.
        threshold: Its own threshold.

    Raises:
        InputError: If the calibration is of another type, or for other labels or templates.
        ConfigError: With `multi_label`.
    """
    if not isinstance(calibration, Calibration):
        got = type(calibration).__name__
        raise InputError(f"calibration is of type {got}: expected Calibration.load(FILE)")
    if multi_label:
        raise ConfigError(
            "got a calibration, where labels compete, and multi_label, where each is judged by "
            "itself: leave one of them out"
        )
    calibration.check(templates=templates_identity(templates))
    return calibration.for_labels(labels, threshold=threshold)


def check_options(labels: Sequence[str], method: str, precision: float | None) -> None:
    """Refuses options of `fit_calibration` before any image is read.

    Raises:
        ConfigError: If the method is unknown or the precision is no share.
        InputError: If there are fewer than two labels.
    """
    if method not in CALIBRATION_METHODS:
        known = suggestion(str(method), CALIBRATION_METHODS)
        raise ConfigError(f'unknown calibration method "{method}": {known}')
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"precision is {precision}: expected a share above 0, at most 1")
    if len(labels) < 2:
        raise InputError("got one label, whose probability is always 1: expected at least two")


def fit_calibration(
    logits: Tensor,
    targets: Tensor,
    labels: Sequence[str],
    *,
    model: Identity,
    templates: Identity,
    head: Sequence[float] = (),
    method: CalibrationMethod = "temperature",
    precision: float | None = None,
) -> Calibration:
    """Fits a calibration on the logits of labelled images.

    Args:
        logits: Logits (B, K) of the classifier that is to be calibrated.
        targets: The right labels' numbers (B,).
        labels: The labels.
        model: Its model.
        templates: Its templates.
        head: Logits of its few-shot head.
        method: "temperature", or "vector", which needs an image of each label.
        precision: The share of predictions that shall be right, 0 to 1; the threshold is the
            least probability from which on they are, on these images. None for no threshold.

    Raises:
        ConfigError: If the method is unknown or the precision is no share.
        InputError: If there are fewer than two labels, no temperature fits, a label has no image
            and the method needs one, or no threshold reaches the precision.

    Example:
        >>> logits = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> targets = torch.distributions.Categorical(logits=logits / 3).sample()
        >>> it = Identity(name="it", fingerprint="0" * 16)
        >>> found = fit_calibration(logits, targets, list("abcd"), model=it, templates=it)
        >>> found.after.nll < found.before.nll
        True
    """
    check_options(labels, method, precision)
    temperature = fit_temperature(logits, targets)
    scale, bias = torch.tensor([1 / temperature], dtype=torch.float64), torch.zeros(1)
    if method == "vector":
        empty = (targets.bincount(minlength=len(labels)) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(
                f"{len(empty)} of {len(labels)} labels have no image, the first is "
                f'"{labels[empty[0]]}": add one of each, or use method="temperature"'
            )
        scale, bias = fit_vector(logits, targets, temperature)
    before = measure(logits, targets)
    found = Calibration(
        method=method,
        labels=tuple(labels),
        scale=tuple(scale.tolist()),
        bias=tuple(bias.tolist()),
        model=model,
        templates=templates,
        head=tuple(head),
        n=len(targets),
        before=before,
        after=before,
    )
    calibrated = found.apply(logits)
    found = replace(found, after=measure(calibrated, targets))
    if precision is None:
        return found
    # float32, as `predict_proba` gives them, so that the image at the threshold passes it
    confidence, likeliest = calibrated.softmax(dim=-1).float().max(dim=-1)
    right = likeliest == targets
    threshold = precision_threshold(confidence, right, precision)
    if threshold is None:
        best = float(precisions(confidence, right)[1].max())
        raise InputError(
            f"no threshold reaches a precision of {precision:g} on {len(targets)} images, where "
            f"the highest is {best:.3f}: ask for less, or add images"
        )
    coverage = float((confidence >= threshold).double().mean())
    return replace(found, threshold=threshold, coverage=coverage)
