"""What the parts of an audit measure with: a subject, labelled images, and what was computed once.

Letters: n images, C classes, D width of a dual encoder's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isthmus.auditing.data import LabelledImages
from isthmus.auditing.splits import halves
from isthmus.auditing.subject import Subject
from isthmus.files import write_atomically
from isthmus.media.image import Source, open_image

Made = TypeVar("Made")

IMAGES = "images"
SHOWN_SIDE = 192
"""Pixels of the longer side of an image that a report shows."""


@dataclass(frozen=True)
class Asked:
    """An association test that was asked for.

    Attributes:
        name: What the report calls it.
        first: Images of the first target: a label, or COLUMN=GROUP.
        second: Of the second target.
        a: Words of the first attribute.
        b: Words of the second.
    """

    name: str
    first: str
    second: str
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an audit was asked for, beside model and data.

    Attributes:
        quick: Fewer draws, images and attacks, for a look within minutes.
        seed: Seed of everything that is drawn.
        groups: Columns whose groups are compared.
        textures: The column with the label whose texture an image wears; empty for none.
        outside: Images of other things, for "none of these"; none without.
        captions: Captions that the subject was trained on, to count its labels in; none without.
        associations: Association tests.
    """

    quick: bool = False
    seed: int = 0
    groups: tuple[str, ...] = ()
    textures: str = ""
    outside: tuple[Source, ...] = ()
    captions: tuple[str, ...] = ()
    associations: tuple[Asked, ...] = ()

    @property
    def draws(self) -> int:
        """Resamples and permutations."""
        return self.least(400, 2000)

    def least(self, quick: int, full: int) -> int:
        """One number for a quick audit, another one for a full one."""
        return quick if self.quick else full


@dataclass
class Bench:
    """A subject before its images; what several parts need is computed once.

    Attributes:
        subject: What is audited.
        data: Images with their classes.
        settings: What was asked for.
        against: Another subject with the same labels, to compare with; None for none.
        folder: Where images of the report are kept; None keeps them in `kept` alone.
        kept: Images of the report by name.
    """

    subject: Subject
    data: LabelledImages
    settings: Settings = field(default_factory=Settings)
    against: Subject | None = None
    folder: Path | None = None
    kept: dict[str, Image.Image] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, what: str, make: Callable[[], Made]) -> Made:
        """What several parts need and only some audits have: made when first asked for."""
        if what not in self._made:
            self._made[what] = make()
        made: Made = self._made[what]
        return made

    @property
    def images(self) -> Sequence[Source]:
        """The n images."""
        return self.data.files

    @cached_property
    def targets(self) -> Tensor:
        """(n,) int64, the class of each image."""
        return torch.tensor(self.data.targets, dtype=torch.long)

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels."""
        return self.subject.labels

    @cached_property
    def logits(self) -> Tensor:
        """(n, C) float32, as deployed."""
        return self.subject.logits(self.images).float().cpu()

    @cached_property
    def predicted(self) -> Tensor:
        """(n,) int64, the likeliest class of each image."""
        return self.logits.argmax(dim=-1)

    @cached_property
    def right(self) -> Tensor:
        """(n,) bool."""
        return self.predicted == self.targets

    @cached_property
    def features(self) -> Tensor | None:
        """(n, D) of a dual encoder; None of a language model."""
        return self.subject.features(self.images)

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Indices of the images that remedies may learn from, and of those they are tested on."""
        split = halves(self.data.targets, self.settings.seed, self.labels)
        return torch.tensor(split.calibration), torch.tensor(split.test)

    def some(self, count: int) -> Tensor:
        """Indices of at most `count` images, spread over the classes, in a fixed order."""
        rng = np.random.default_rng(self.settings.seed)
        order = rng.permutation(len(self.targets))
        turn: dict[int, int] = {}
        ranked = []
        for index in order.tolist():
            label = int(self.targets[index])
            turn[label] = turn.get(label, 0) + 1
            ranked.append((turn[label], index))
        chosen = [index for _, index in sorted(ranked, key=lambda pair: pair[0])[:count]]
        return torch.tensor(sorted(chosen), dtype=torch.long)

    def keep(self, name: str, image: Source) -> str:
        """Keeps an image for the report, small; returns its name."""
        small = open_image(image)
        small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        self.kept[name] = small
        if self.folder is not None:
            target = self.folder / IMAGES / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, lambda path: small.save(path, "PNG"))
        return name
