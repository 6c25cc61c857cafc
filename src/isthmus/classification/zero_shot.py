"""A classifier for any labels: images are compared with what the labels say.

Letters: B images, K classes, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.classification.calibration import (
    Calibration,
    CalibrationMethod,
    calibration_for,
    check_options,
    fit_calibration,
)
from isthmus.classification.classifier_cache import cached_weights, zero_shot_weights
from isthmus.classification.few_shot import METHODS, Method, Scorer, fit_head
from isthmus.classification.identity import head_probe, model_identity, templates_identity
from isthmus.classification.templates import Templates, checked_labels, prompts_of
from isthmus.errors import ConfigError, InputError, PromptError, suggestion
from isthmus.media.image import Source
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder

Images = Sequence[Source] | Tensor
"""Images, or their features (B, D) as `DualEncoder.encode_images` gives them."""
NONE = "none of these"
ANYTHING = "something"
"""The label that stands for any other, where a softmax model judges each label by itself."""


class ZeroShotClassifier:
    """A classifier in scikit-learn's manner that needs no training.

    A label's weight vector is the mean of its prompts' vectors; an image's score for it is their
    similarity times the model's own temperature (Radford et al. 2021, section 3.1).

    Args:
        model: A dual encoder or what `load_clip` takes.
        labels: The classes, in any words.
        templates: How labels become prompts; see `isthmus.classification.templates.prompts_of`.
        multi_label: Whether an image may have several labels or none: `predict` then tells for
            each. With a sigmoid model its own scores are used. A softmax model has none for one
            label alone: a label is weighed against a prompt of "something".
        threshold: Below it an image is "none of these"; with `multi_label`, above it a label
            holds (0.5 unless set). It replaces the calibration's.
        calibration: What `calibrate` fitted, for this model and these templates. Labels may
            stand in another order.
        cache: Where weights are kept on disk: a folder, True for Isthmus's cache, False for not.
        batch_size: Images in one pass; it changes no score.
        device: Where a model that is named is loaded to; see `load_clip`.
        dtype: Its data type likewise.

    Attributes:
        classes_: The labels (K,), in the order given.
        weights_: The zero-shot weights (K, D), of length 1.
        head_: What `fit` learned, from features (B, D) to logits (B, K); None before.

    Raises:
        InputError: If there is no label, or one is there twice; or if the calibration is for
            other labels or templates, and, when first used, for another model.
        ConfigError: If there is a calibration, and `multi_label` too.
        PromptError: If a template has no `{}`; and, when first used, if a prompt is longer than
            the model's context.

    Example:
        >>> from PIL import Image
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "imagenet-7", cache=False)
        >>> classifier.predict_proba([Image.new("RGB", (8, 8))]).shape
        (1, 2)
    """

    def __init__(
        self,
        model: Any = "tiny-clip",
        labels: Sequence[str] = (),
        templates: Templates = "imagenet-7",
        *,
        multi_label: bool = False,
        threshold: float | None = None,
        calibration: Calibration | None = None,
        cache: bool | str | Path = True,
        batch_size: int = 32,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
    ) -> None:
        self.labels = labels
        self.templates = templates
        self.multi_label = multi_label
        self.threshold = threshold
        self.calibration = calibration
        self.cache = cache
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        names = checked_labels(labels)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}: expected a probability, 0 to 1")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        self._prompts = prompts_of(names, templates)
        self._calibration = calibration
        if calibration is not None:
            told: dict[str, Any] = {"multi_label": multi_label, "threshold": threshold}
            self._calibration = calibration_for(calibration, names, templates, **told)
        self._calibration_checked = False
        self.classes_: NDArray[np.str_] = np.array(names)
        self.model: DualEncoder = load_clip(model, device=device, dtype=dtype)
        self._weights: Tensor | None = None
        self._reference: Tensor | None = None
        self.head_: Scorer | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it was made with, as scikit-learn's `clone` asks."""
        names = ["model", "labels", "templates", "multi_label", "threshold", "calibration"]
        names += ["cache", "batch_size", "device", "dtype"]
        return {name: getattr(self, name) for name in names}

    @property
    def weights_(self) -> Tensor:
        """The zero-shot weights (K, D), computed or read when first asked for."""
        if self._weights is None:
            self._weights = self._weights_of(self._prompts)
        return self._weights

    def _weights_of(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        if self.cache is False:
            return zero_shot_weights(self.model, prompts)
        return cached_weights(self.model, prompts, None if self.cache is True else self.cache)

    # --- Scores -----------------------------------------------------------------------------

    def transform(self, images: Images) -> Tensor:
        """Features (B, D) of images; features stay what they are.

        Raises:
            InputError: If it is one image and no list, or features of another width.
            ImageError: If one is no image.
        """
        if isinstance(images, Tensor):
            width = self.weights_.shape[1]
            if images.ndim != 2 or images.shape[1] != width:
                raise InputError(
                    f"got a tensor of shape {tuple(images.shape)}: expected features (B, {width}), "
                    "or a list of images"
                )
            return torch.nn.functional.normalize(images.float().cpu(), dim=-1)
        if isinstance(images, str | bytes | Path) or not hasattr(images, "__len__"):
            raise InputError("got one image: expected a list of images")
        if len(images) == 0:
            raise InputError("got no images: expected at least one")
        return self.model.encode_images(images, batch_size=self.batch_size)

    @torch.no_grad()
    def decision_function(self, images: Images) -> NDArray[np.float32]:
        """Logits (B, K): similarities times the model's temperature, plus its bias, if any.

        With a calibration they are scaled by it.
        """
        return self.logits(self.transform(images)).float().numpy()

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, K) of unit vectors (B, D), as of `decision_function`, with their gradient."""
        return self._calibrated(self._logits(features))

    def _logits(self, features: Tensor) -> Tensor:
        if self.head_ is not None:
            return self.head_(features)
        scale, bias = self._scale()
        return scale * features @ self.weights_.T + bias

    def _scale(self) -> tuple[float, float]:
        bias = self.model.logit_bias
        scale = self.model.logit_scale.detach().exp()
        return float(scale), 0.0 if bias is None else float(bias.detach())

    @torch.no_grad()
    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (B, K).

        Rows sum to 1 where labels compete: for a softmax model, and for any model after `fit` or
        with a calibration. A sigmoid model gives each label its own, as does `multi_label`.

        Raises:
            InputError: If the calibration is for another model or few-shot head.
        """
        features = self.transform(images)
        logits = self.logits(features)
        competing = self.model.loss == "softmax" and not self.multi_label
        if competing or self.head_ is not None or self.calibration is not None:
            return logits.softmax(dim=-1).float().numpy()
        if self.model.loss == "softmax":
            logits = logits - self._scale()[0] * features @ self._anything().T
        return logits.sigmoid().numpy()

    def _anything(self) -> Tensor:
        """The vector (1, D) of "something" in the same templates."""
        if self._reference is None:
            try:
                prompts = prompts_of([ANYTHING], self.templates)
            except PromptError:  # they are descriptions of the labels alone
                prompts = prompts_of([ANYTHING], "one")
            self._reference = self._weights_of(prompts)
        return self._reference

    # --- Answers ----------------------------------------------------------------------------

    def predict(self, images: Images) -> NDArray[Any]:
        """The label of each image (B,), or with `multi_label` whether each holds (B, K).

        With a threshold, an image whose best label is less probable is "none of these". It is
        the classifier's own, or else the calibration's.
        """
        scores = self.predict_proba(images)
        if self.multi_label:
            return scores >= (0.5 if self.threshold is None else self.threshold)
        found, threshold = self.classes_[scores.argmax(axis=1)], self._threshold()
        if threshold is None:
            return found
        return np.where(scores.max(axis=1) < threshold, NONE, found)

    def top(self, images: Images, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k likeliest labels of each image with their probabilities, likeliest first."""
        scores = self.predict_proba(images)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            [(str(self.classes_[i]), float(row[i])) for i in best]
            for row, best in zip(scores, order, strict=True)
        ]

    def score(self, images: Images, labels: Any) -> float:
        """The share of images whose prediction is right; with `multi_label`, right throughout.

        Args:
            images: The images.
            labels: Their labels (B,), or with `multi_label` an array of truths (B, K).

        Raises:
            InputError: If there are not as many labels as images, or one is unknown.
        """
        found = self.predict(images)
        if self.multi_label:
            truth = np.asarray(labels, bool)
            if truth.shape != found.shape:
                raise InputError(f"got labels of shape {truth.shape}: expected {found.shape}")
            return float((found == truth).all(axis=1).mean())
        self._targets(labels, len(found), also=() if self._threshold() is None else (NONE,))
        return float(np.mean(found == np.asarray([str(label) for label in labels])))

    # --- A few labelled images ------------------------------------------------------------

    def fit(
        self,
        images: Images,
        labels: Sequence[str],
        method: Method = "tip-adapter",
        **options: Any,
    ) -> ZeroShotClassifier:
        """Learns from labelled images; scores come from the method from then on.

        Args:
            images: The images, or features that were computed before.
            labels: Their labels, of the classifier's.
            method: "tip-adapter" (no training) and "tip-adapter-f" (tuned) add to the zero-shot
                scores; "ncm" (nearest class mean) and "linear" (logistic regression) replace
                them; "coop" learns the words before the label.
            **options: Of the method: `alpha`, `beta` (`alpha=None` chooses both); also `epochs`,
                `learning_rate`, `batch_size`, `seed`; `penalty` and `toward="text"` of "linear";
                `context` of "coop". See `isthmus.classification.few_shot`.

        Returns:
            The classifier itself.

        Raises:
            InputError: If labels are unknown or do not match the images, or a class has no
                image and the method needs one.
            ConfigError: If the method or an option is unknown.
        """
        if method not in METHODS:
            raise ConfigError(f'unknown method "{method}": {suggestion(method, METHODS)}')
        if self.multi_label:
            raise ConfigError("fit learns one label for each image: leave out multi_label")
        features = self.transform(images)
        targets = self._targets(labels, len(features))
        names = [str(name) for name in self.classes_]
        head = fit_head(method, self.model, names, self.weights_, features, targets, options)
        self.head_, self._calibration_checked = head, False
        return self

    # --- Calibration ------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(
        self,
        images: Images,
        labels: Sequence[str],
        *,
        method: CalibrationMethod = "temperature",
        precision: float | None = None,
    ) -> ZeroShotClassifier:
        """The same classifier with probabilities that fit labelled images (Guo et al. 2017).

        What `fit` learned is calibrated with it, on images other than those of `fit`. Labels
        compete from then on: a sigmoid model's logits are compared by softmax, in which its bias
        is no matter.

        Args:
            images: Images like those that will be classified, or their features.
            labels: Their labels, of the classifier's.
            method: "temperature" scales all logits by one number, which leaves every prediction
                as it is, and needs few images. "vector" gives each label a scale and a
                bias, which needs several images of each. See
                `isthmus.classification.scaling`.
            precision: Sets the least threshold from which on predictions are right for this
                share of the images; below it an image is "none of these". None for none.

        Returns:
            A new classifier; its `calibration` can be saved. This one is untouched.

        Raises:
            InputError: If labels are unknown or do not match the images; if all predictions are
                right, or no better than chance, so that no temperature fits; or if no threshold
                reaches the precision.
            ConfigError: With `multi_label`; if the method is unknown; or if there are both a
                precision and a threshold.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
            >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
            >>> labels = ["cat", "dog"] * 50
            >>> noise = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
            >>> features = classifier.weights_.repeat(50, 1) + noise / 2
            >>> calibrated = classifier.calibrate(features, labels)
            >>> calibrated.calibration.after.nll <= calibrated.calibration.before.nll
            True
        """
        if self.multi_label:
            raise ConfigError("calibrate compares labels with each other: leave out multi_label")
        if precision is not None and self.threshold is not None:
            raise ConfigError(
                f"got a precision and the threshold {self.threshold}: leave one of them out"
            )
        names = [str(name) for name in self.classes_]
        check_options(names, method, precision)
        features = self.transform(images)
        found = fit_calibration(
            self._logits(features),
            self._targets(labels, len(features)),
            names,
            model=model_identity(self.model),
            templates=templates_identity(self.templates),
            head=self._head(),
            method=method,
            precision=precision,
        )
        made = ZeroShotClassifier(**{**self.get_params(), "calibration": found})
        made._weights, made.head_ = self._weights, self.head_
        made._calibration_checked = True
        return made

    def _calibrated(self, logits: Tensor) -> Tensor:
        """Calibrated logits (B, K), or the same if there is no calibration."""
        if self._calibration is None:
            return logits
        if not self._calibration_checked:  # once: it reads every weight
            self._calibration.check(model=model_identity(self.model), head=self._head())
            self._calibration_checked = True
        return self._calibration.apply(logits)

    def _head(self) -> list[float]:
        """What tells the few-shot head from others; empty if there is none."""
        return [] if self.head_ is None else head_probe(self.head_, self.weights_.shape[1])

    def _threshold(self) -> float | None:
        if self.threshold is not None or self._calibration is None:
            return self.threshold
        return self._calibration.threshold

    def _targets(self, labels: Any, expected: int, also: Sequence[str] = ()) -> Tensor:
        """Class numbers of labels."""
        if isinstance(labels, str) or len(labels) != expected:
            got = "one text" if isinstance(labels, str) else f"{len(labels)} labels"
            raise InputError(f"got {got} for {expected} images: expected a label for each")
        known = {str(name): i for i, name in enumerate(self.classes_)}
        known |= dict.fromkeys(also, -1)
        for label in labels:
            if str(label) not in known:
                raise InputError(f'unknown label "{label}": {suggestion(str(label), known)}')
        return torch.tensor([known[str(label)] for label in labels])
