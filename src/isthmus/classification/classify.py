"""Sorting many images into named classes, where one that cannot be read costs no other's result.

`ZeroShotClassifier` is the classifier; here it meets folders, streams and broken files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.classification.answers import Scored, scored_answers
from isthmus.classification.calibration import Calibration
from isthmus.classification.templates import Templates, checked_labels
from isthmus.classification.zero_shot import NONE, ZeroShotClassifier
from isthmus.data.folders import images_of
from isthmus.errors import ConfigError, ImageError, InputError
from isthmus.generation.engine import Engine
from isthmus.media.image import Source, open_image
from isthmus.media.prefetch import prefetch
from isthmus.model.clip.dual_encoder import DECODERS
from isthmus.model.saving import kind_of, load
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel

TEMPLATES = "imagenet-7"


@dataclass(frozen=True)
class Classified:
    """What an image was sorted into.

    Attributes:
        image: The image as it was given, or its path where a folder was.
        labels: Its label; with `multi_label` all that hold. "none of these" where none does.
        top: The likeliest labels with their probabilities, likeliest first.
        error: Why it could not be read; empty where it could. Then there are no labels.
    """

    image: Source
    labels: tuple[str, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


def classify_images(
    images: Source | Iterable[Source],
    labels: Iterable[str],
    templates: Templates = TEMPLATES,
    *,
    top: int = 5,
    threshold: float | None = None,
    multi_label: bool = False,
    calibration: Calibration | str | Path | None = None,
    model: Any = "tiny-clip",
    batch_size: int = 32,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
) -> Iterator[Classified]:
    """Sorts images into classes that are named in words (Radford et al. 2021, section 3.1).

    Args:
        images: Images and folders of them, one or several. Hidden files in folders are passed
            over.
        labels: The classes.
        templates: How labels become prompts; see `isthmus.classification.templates.prompts_of`.
        top: How many labels are told of each image.
        threshold: Below it an image is "none of these"; with `multi_label`, above it a label
            holds (0.5 unless set).
        multi_label: Whether an image may have several labels or none.
        calibration: What `ZeroShotClassifier.calibrate` fitted, or its file.
        model: A dual encoder, or what `load_clip` takes. Or a model that answers, or its name:
            labels are then scored as answers to "What is in the image?".
        batch_size: Images in one pass; it changes no score.
        device: Where a model that is named is loaded to.
        dtype: Its data type.

    Returns:
        An iterator over the results in the order of the images, a batch computed at a time. An
        image that cannot be read has an `error` and stops nothing.

    Raises:
        InputError: At once, if there is no image or no label, a label is there twice, or the
            calibration is for other labels, templates or another model.
        PromptError: If a template has no `{}`.

    Example:
        >>> from PIL import Image
        >>> images = [Image.new("RGB", (8, 8)), "no-such-file.png"]
        >>> found = list(classify_images(images, ["cat", "dog"]))
        >>> len(found[0].labels), found[1].error
        (1, 'no file at no-such-file.png: check the path')
    """
    several = isinstance(images, Iterable) and not isinstance(images, (str, bytes, Path))
    sources = images_of(images if several else [images])  # type: ignore[arg-type, list-item]
    if not sources:
        raise InputError("got no images: expected at least one")
    if _answers(model):
        if templates != TEMPLATES or calibration is not None or multi_label:
            raise ConfigError(
                f'"{model}" answers questions, and its labels are answers: templates, calibration '
                "and multi_label are a dual encoder's; leave them out"
            )
        if isinstance(model, str | Path):
            model = load(model, device=device, dtype=dtype)
        names = checked_labels(list(labels))
        found = scored_answers(model, sources, names, batch_size)
        return (_answered(one, names, top, threshold) for one in found)
    if isinstance(calibration, str | Path):
        calibration = Calibration.load(calibration)
    classifier = ZeroShotClassifier(
        model,
        list(labels),
        templates,
        multi_label=multi_label,
        threshold=threshold,
        calibration=calibration,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    return _classified(classifier, sources, top, batch_size)


def _answers(model: Any) -> bool:
    """Whether a model, or what it is named by, answers questions."""
    if isinstance(model, VisionLanguageModel | WholeModel | Engine):
        return True
    return isinstance(model, str | Path) and kind_of(model) == "vlm"


def _answered(one: Scored, names: Sequence[str], top: int, threshold: float | None) -> Classified:
    """The result of an image whose labels were scored as answers."""
    source, shares = one
    if isinstance(shares, str):
        return Classified(source, error=shares)
    order = shares.argsort(descending=True, stable=True).tolist()
    best = tuple((names[i], float(shares[i])) for i in order[:top])
    label = NONE if threshold is not None and best[0][1] < threshold else best[0][0]
    return Classified(source, (label,), best)


def _classified(
    classifier: ZeroShotClassifier, sources: list[Source], top: int, batch_size: int
) -> Iterator[Classified]:
    _ = classifier.weights_  # the labels' vectors, once

    def opened(source: Source) -> tuple[Source, Tensor | str]:
        try:
            return source, classifier.model.preprocess(open_image(source))
        except (ImageError, OSError) as error:
            return source, str(error)

    ahead = 2 * max(batch_size, DECODERS)
    with closing(prefetch(sources, opened, workers=DECODERS, ahead=ahead)) as found:
        while batch := list(islice(found, batch_size)):
            yield from _sorted(classifier, batch, top)


@torch.no_grad()
def _sorted(
    classifier: ZeroShotClassifier, batch: list[tuple[Source, Tensor | str]], top: int
) -> list[Classified]:
    """The results of a batch, in its order."""
    pixels = [p for _, p in batch if isinstance(p, Tensor)]
    results: Iterator[tuple[tuple[str, ...], tuple[tuple[str, float], ...]]] = iter(())
    if pixels:
        features = classifier.model.encode_pixels(torch.stack(pixels)).float().cpu()
        best = [tuple(ranked) for ranked in classifier.top(features, top)]
        results = iter(zip(_labels(classifier, features), best, strict=True))
    return [
        Classified(source, *next(results)) if isinstance(p, Tensor) else Classified(source, error=p)
        for source, p in batch
    ]


def _labels(classifier: ZeroShotClassifier, features: Tensor) -> list[tuple[str, ...]]:
    found = classifier.predict(features)
    if not classifier.multi_label:
        return [(str(label),) for label in found]
    names = [str(name) for name in classifier.classes_]
    held = [tuple(n for n, holds in zip(names, row, strict=True) if holds) for row in found]
    return [labels or (NONE,) for labels in held]
