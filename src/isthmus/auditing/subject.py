"""What is audited: a classifier, or a multimodal language model that answers with closed labels.

Both stand behind one protocol, `Subject`, so that every measure treats them alike. What is deployed
is what is audited: logits come with the ensemble of templates, a few-shot head and a calibration.

Letters: n images, C labels, D width of the common space.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from isthmus.auditing.rows import Rows
from isthmus.classification.few_shot import TipAdapter
from isthmus.classification.identity import head_probe, model_identity, templates_identity
from isthmus.classification.templates import (
    Templates,
    checked_labels,
    resolved_templates,
)
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import ConfigError, InputError
from isthmus.media.image import Source
from isthmus.model.clip.dual_encoder import DualEncoder


class Subject(Protocol):
    """A model with labels, seen as a function from images to logits.

    Images are anything that `open_image` takes. One that was seen before is not computed again.
    """

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels (C,)."""
        ...

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts around a label, with "{}" in its place.

        For a language model the wordings of its question; empty where each label has descriptions
        of its own.
        """
        ...

    @property
    def chance(self) -> float:
        """The accuracy of guessing, 1 / C."""
        ...

    @property
    def encoder(self) -> DualEncoder | None:
        """The dual encoder; None for a language model."""
        ...

    @property
    def similarity_scale(self) -> float | None:
        """The factor between cosine similarities and logits, which `outside.mcm` needs.

        None where logits are no similarities, as with a few-shot head.
        """
        ...

    @property
    def predict_none(self) -> float | None:
        """Below this probability an image is "none of these"; None for no threshold."""
        ...

    def logits(self, images: Sequence[Source]) -> Tensor:
        """Logits (n, C), float32 on the CPU, as deployed.

        Raises:
            ImageError: If an image cannot be read.
        """
        ...

    def features(self, images: Sequence[Source]) -> Tensor | None:
        """Unit vectors (n, D), float32 on the CPU; None where the subject has none.

        Raises:
            ImageError: If an image cannot be read.
        """
        ...

    def with_prompts(
        self, labels: Sequence[str] | None = None, templates: Templates | None = None
    ) -> Subject:
        """The same model with other wording: class k stays class k.

        Args:
            labels: Other words for the labels, in their order; more labels may follow as
                distractors. None keeps them.
            templates: Other templates; None keeps them.

        Raises:
            InputError: If there are fewer labels than before, or one is there twice.
            ConfigError: If the wording has no influence on the logits.
        """
        ...

    def identity(self) -> dict[str, str]:
        """What decides its results, hashed where it is long."""
        ...


@dataclass(frozen=True)
class ClassifierSubject:
    """A zero-shot classifier as a subject.

    An image is encoded once, whatever wordings it is classified with. The encoder must not be
    trained in between.

    Args:
        classifier: The classifier, with its templates, few-shot head and calibration.
        name: What a report calls it.

    Example:
        >>> from PIL import Image
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
        >>> subject = ClassifierSubject(classifier, "tiny")
        >>> subject.logits([Image.new("RGB", (8, 8))]).shape
        torch.Size([1, 2])
        >>> subject.with_prompts(labels=["kitten", "puppy"]).labels
        ('kitten', 'puppy')
    """

    classifier: ZeroShotClassifier
    name: str
    _features: Rows = field(default_factory=Rows, repr=False, compare=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels (C,)."""
        return tuple(str(label) for label in self.classifier.classes_)

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates; empty where each label has descriptions of its own."""
        resolved = resolved_templates(self.classifier.templates)
        return () if isinstance(resolved, dict) else tuple(resolved)

    @property
    def chance(self) -> float:
        """1 / C."""
        return 1 / len(self.labels)

    @property
    def encoder(self) -> DualEncoder:
        """The dual encoder."""
        return self.classifier.model

    @property
    def similarity_scale(self) -> float | None:
        """The factor between similarities and logits; None with a few-shot head."""
        calibration = self.classifier.calibration
        if self.classifier.head_ is not None or (calibration and calibration.temperature is None):
            return None
        scale = float(self.encoder.logit_scale.detach().exp())
        return scale if calibration is None else scale * calibration.scale[0]

    @property
    def predict_none(self) -> float | None:
        """The threshold of "none of these": the classifier's own, or else the calibration's."""
        if self.classifier.multi_label:  # there a threshold says which labels hold
            return None
        calibration = self.classifier.calibration
        own: float | None = self.classifier.threshold
        return own if own is not None or calibration is None else calibration.threshold

    def features(self, images: Sequence[Source]) -> Tensor:
        """See `Subject`."""
        return self._features.of(images, self.classifier.transform)

    def logits(self, images: Sequence[Source]) -> Tensor:
        """See `Subject`."""
        return torch.from_numpy(self.classifier.decision_function(self.features(images)))

    def with_prompts(
        self, labels: Sequence[str] | None = None, templates: Templates | None = None
    ) -> ClassifierSubject:
        """See `Subject`; a calibration goes with labels and templates that stay as they are.

        Raises:
            InputError: As for `Subject`.
            ConfigError: If a few-shot head does not depend on prompts, or the labels have
                descriptions and only the labels are changed.
        """
        old = self.classifier
        names = same_or_more(self.labels, labels)
        texts = old.templates if templates is None else templates
        resolved = resolved_templates(texts)
        if names == self.labels and resolved == resolved_templates(old.templates):
            return self
        if isinstance(resolved, dict) and templates is None:
            raise ConfigError(
                "each label has descriptions of its own, which go with its name: pass templates "
                "as well"
            )
        if old.head_ is not None and not isinstance(old.head_, TipAdapter):
            raise ConfigError(
                "the few-shot head does not depend on prompts: it replaced the zero-shot scores "
                '("ncm", "linear") or learned a context in place of templates ("coop"); audit the '
                "zero-shot classifier for its sensitivity to prompts"
            )
        told = old.get_params()
        # Hundreds of wordings may be tried: none of them belongs into the cache on the disk
        told |= {"model": old.model, "labels": list(names), "templates": texts, "cache": False}
        made = ZeroShotClassifier(**{**told, "calibration": None})
        if old.head_ is not None:
            made.head_ = _reworded(old.head_, made.weights_)
        return ClassifierSubject(made, self.name, self._features)

    def identity(self) -> dict[str, str]:
        """See `Subject`."""
        own = self.classifier
        head = [] if own.head_ is None else head_probe(own.head_, own.weights_.shape[1])
        told = None if own.calibration is None else repr(own.calibration)
        return {
            "kind": "classifier",
            "model": own.model.name,
            "weights": model_identity(own.model).fingerprint,
            "dtype": str(next(own.model.image.parameters()).dtype),
            "labels": short_hash(self.labels),
            "templates": templates_identity(own.templates).fingerprint,
            # Other machines differ in the last digits
            "head": short_hash([f"{value:.3g}" for value in head]) if head else "none",
            "calibration": short_hash(told) if told else "none",
            "threshold": str(self.predict_none),
            "multi_label": str(own.multi_label),
        }


def same_or_more(old: Sequence[str], new: Sequence[str] | None) -> tuple[str, ...]:
    """Other words for labels, position by position, or the same where there are none.

    Raises:
        InputError: If there are fewer than before, or one is there twice.

    Example:
        >>> same_or_more(["cat"], ["kitten", "a distractor"])
        ('kitten', 'a distractor')
    """
    if new is None:
        return tuple(old)
    names = tuple(checked_labels(new))
    if len(names) < len(old):
        raise InputError(
            f"got {len(names)} labels in place of {len(old)}: expected at least as many, in the "
            "same order, so that each class keeps its number"
        )
    return names


def _reworded(head: TipAdapter, weights: Tensor) -> TipAdapter:
    """Tip-Adapter with other zero-shot weights (C, D); labels beyond its own have no images."""
    made = copy.copy(head)
    made.zero_shot = weights
    made.values = torch.nn.functional.one_hot(head.targets, len(weights)).float()
    return made


def short_hash(value: Any) -> str:
    """16 hexadecimal digits of what JSON can say."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
