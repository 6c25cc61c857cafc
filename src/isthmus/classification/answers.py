"""Sorting images into named classes by a model that answers: each label is a closed answer.

The model is asked "What is in the image?", and the labels are scored as its answers. The softmax
over their log-probabilities is the label's probability, as in `isthmus eval` with closed answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from isthmus.classification.templates import checked_labels
from isthmus.errors import ImageError, InputError
from isthmus.generation.engine import Engine
from isthmus.media.image import Source, open_image
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named

QUESTION = "What is in the image?"
Scored = tuple[Source, torch.Tensor | str]
"""An image with the probabilities (K,) of the labels, or why it could not be read."""


def scored_answers(
    model: Any, sources: Sequence[Source], labels: Sequence[str], batch_size: int = 32
) -> Iterator[Scored]:
    """The probabilities of labels as answers to `QUESTION`, image by image.

    Args:
        model: A model that answers, or an engine around one.
        sources: The images.
        labels: The answers.
        batch_size: Images that are asked about together.

    Raises:
        InputError: If the model sees no images.

    Example:
        >>> import isthmus as im
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear())
        >>> [(_, shares)] = scored_answers(model, [Image.new("RGB", (8, 8))], ["a", "b"])
        >>> shares.shape
        torch.Size([2])
    """
    names = checked_labels(labels)
    engine = model if isinstance(model, Engine) else Engine(model)
    if engine.model.text_only:
        raise InputError(
            f"{engine.model.config.language.name} is only a language model and sees no images: "
            "join it to a vision encoder with im.compose"
        )
    template = template_named(engine.model.config.template, engine.model.language.tokenizer)
    for start in range(0, len(sources), batch_size):
        shown = [_opened(source) for source in sources[start : start + batch_size]]
        good = [image for image in shown if isinstance(image, Image.Image)]
        prompts = [template([], Example((image,), QUESTION)) for image in good]
        answers = [[f"{prompt.junction}{name}" for name in names] for prompt in prompts]
        scores = iter(engine.score(prompts, answers) if prompts else ())
        for source, image in zip(sources[start : start + batch_size], shown, strict=True):
            if isinstance(image, str):
                yield source, image
            else:
                logs = torch.tensor(next(scores).by("sum"), dtype=torch.float64)
                yield source, logs.softmax(dim=0)


def _opened(source: Source) -> Image.Image | str:
    try:
        return open_image(source)
    except (ImageError, OSError) as error:
        return str(error)
