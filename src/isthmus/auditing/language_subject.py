"""A multimodal language model as what is audited: it answers a question with one of the labels.

Letters: n images, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.rows import Rows
from isthmus.auditing.subject import same_or_more, short_hash
from isthmus.classification.templates import SLOT, Templates, checked_labels
from isthmus.errors import ConfigError, InputError
from isthmus.generation.engine import Engine
from isthmus.media.image import Source, open_image
from isthmus.model.backbones.fingerprint import fingerprint
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named

QUESTION = "What is in the picture?"
ASKED_AT_ONCE = 64
"""Images whose files are in memory together while a language model is asked about them."""
Norm = Literal["sum", "token", "byte"]


@dataclass(frozen=True)
class LanguageSubject:
    """A multimodal language model that answers a question with one of the labels, as a subject.

    A label's logit is the log-probability of its tokens as the answer, all labels scored as one
    token tree (`Engine.score`), as `isthmus eval` does. The softmax over labels is then the
    probability of each label given that one of them is the answer. Several wordings of the question
    are an ensemble: the mean of the probabilities is taken, and its logarithm.

    Args:
        model: The model, or an engine around it.
        labels: The labels; each is scored as the answer, word for word.
        templates: Wordings of the question, without "{}".
        name: What a report calls it.
        norm: What answers of different lengths are scored by: the "sum" of their tokens'
            log-probabilities, or its mean over each "token" or "byte".

    Raises:
        InputError: If there is no label or question, a label is there twice, or the model sees no
            images.
        ConfigError: If a question has a "{}", or the norm is unknown.

    Example:
        >>> import isthmus as im
        >>> from PIL import Image
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> subject = LanguageSubject(model, ["cat", "dog"])
        >>> subject.logits([Image.new("RGB", (8, 8))]).shape
        torch.Size([1, 2])
    """

    model: VisionLanguageModel | WholeModel | Engine
    labels: tuple[str, ...]
    templates: tuple[str, ...] = (QUESTION,)
    name: str = "language model"
    norm: Norm = "sum"
    _engine: Engine = field(init=False, repr=False, compare=False)
    _rows: Rows = field(default_factory=Rows, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        engine = self.model if isinstance(self.model, Engine) else Engine(self.model)
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "labels", tuple(checked_labels(self.labels)))
        object.__setattr__(self, "templates", _questions(self.templates))
        if self.norm not in ("sum", "token", "byte"):
            raise ConfigError(f'norm is "{self.norm}": expected sum, token or byte')
        if engine.model.text_only:
            raise InputError(
                f"{engine.model.config.language.name} is a language model alone and sees no "
                "images: join it to a vision encoder with im.compose"
            )

    @property
    def chance(self) -> float:
        """1 / C."""
        return 1 / len(self.labels)

    @property
    def encoder(self) -> None:
        """None: it has no common space."""
        return None

    @property
    def similarity_scale(self) -> None:
        """None: its logits are log-probabilities."""
        return None

    @property
    def predict_none(self) -> None:
        """None: it always answers."""
        return None

    def features(self, images: Sequence[Source]) -> None:
        """None: it has no common space."""
        return None

    def logits(self, images: Sequence[Source]) -> Tensor:
        """See `Subject`; mixed over the wordings of the question."""
        return self._rows.of(images, self._scored)

    def _scored(self, images: Sequence[Source]) -> Tensor:
        model = self._engine.model
        template = template_named(model.config.template, model.language.tokenizer)
        found: list[Tensor] = []
        for start in range(0, len(images), ASKED_AT_ONCE):
            shown = [_as_seen(image) for image in images[start : start + ASKED_AT_ONCE]]
            ways = []
            for question in self.templates:
                prompts = [template([], Example((image,), question)) for image in shown]
                answers = [[f"{p.junction}{label}" for label in self.labels] for p in prompts]
                scores = self._engine.score(prompts, answers)
                ways.append(torch.tensor([s.by(self.norm) for s in scores], dtype=torch.float64))
            mixed = torch.stack(ways).logsumexp(dim=0) - torch.tensor(float(len(ways))).log()
            found.append(mixed.float())
        return torch.cat(found)

    def with_prompts(
        self, labels: Sequence[str] | None = None, templates: Templates | None = None
    ) -> LanguageSubject:
        """See `Subject`; templates are wordings of the question.

        Raises:
            InputError: As for `Subject`.
            ConfigError: If a question has a "{}", or questions are given by label.
        """
        names = same_or_more(self.labels, labels)
        asked = self.templates if templates is None else _questions(templates)
        if (names, asked) == (self.labels, self.templates):
            return self
        return LanguageSubject(self._engine, names, asked, self.name, self.norm)

    def identity(self) -> dict[str, str]:
        """See `Subject`."""
        model = self._engine.model
        return {
            "kind": "language",
            "model": f"{model.config.vision.name}+{model.config.language.name}",
            "weights": fingerprint(model, exact=True),
            "dtype": str(next(model.language.model.parameters()).dtype),
            "labels": short_hash(self.labels),
            "templates": short_hash(self.templates),
            "template": model.config.template,
            "norm": self.norm,
        }


def _as_seen(image: Source) -> Source:
    """An image as every subject sees it: a PIL image upright, in RGB, transparency over white."""
    return open_image(image) if isinstance(image, Image.Image) else image


def _questions(templates: Templates) -> tuple[str, ...]:
    """Wordings of a question.

    Raises:
        InputError: If there are none, or one is empty.
        ConfigError: If one has a place for the label, or they are given by label.
    """
    if isinstance(templates, str):
        templates = [templates]
    if not isinstance(templates, Sequence):
        raise ConfigError(
            f"got {type(templates).__name__} as questions: expected a list of wordings of one "
            f'question, as in ["{QUESTION}"]'
        )
    found = tuple(str(text).strip() for text in templates)
    if not found or "" in found:
        raise InputError(f'got {list(found)} as questions: expected one or more, as "{QUESTION}"')
    for text in found:
        if SLOT in text:
            raise ConfigError(
                f'the question "{text}" has a {SLOT}: a language model is asked a question and '
                "answers with the label; leave it out"
            )
    return found
