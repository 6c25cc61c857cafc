"""Episodes of one's own labelled images: made-up names to be bound, the odd one to be found.

A task asks about things that have no name, or not this one, so that nothing but the demonstrations
answers it. The image that is asked about is never among them. `isthmus.data.episodes` trains on
such episodes; questions and answers are letter by letter the same here. Pure: no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from isthmus.data.episodes import ODD, PLACES, QUESTIONS
from isthmus.data.made_up import TESTED as NAMES
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.evaluation.tasks.drawing import chosen, generator
from isthmus.evaluation.tasks.images import source
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import Example

MOST_SHOTS = 40
"""Demonstrations that an episode is given, at most."""
ENOUGH = 6
"""Images of a class, for five demonstrations and a question."""
ODD_SHOTS = 4
"""Other rows of images that a question about the odd one is shown after."""


def binding(
    path: str | Path,
    *,
    ways: int = 2,
    across: bool = False,
    seed: int = 0,
    n: int = 500,
    root: str | Path | None = None,
) -> Task:
    """Which of a few made-up names an image's class has, told by other images with their names.

    Demonstrations go round the names in turn, in an order of their own each round, so any multiple
    of the ways is balanced. All images of an episode are different ones.

    Args:
        path: Anything that `read_data` takes, with one image and its class in a row. A class of
            fewer than six images is left out, unless most have so few; the smallest of the others
            decides how many demonstrations there can be.
        ways: Names to choose from.
        across: Take the demonstrations of every name from another `source` than the image that is
            asked about, so that neither likeness nor unlikeness of sources tells the name. Each row
            needs a `source` then, and each class images of two sources or more.
        seed: Seed of all items.
        n: Test items.
        root: As for `read_data`.

    Raises:
        ConfigError: If it cannot be read, or there are too few classes or names.
    """
    if not 2 <= ways <= len(NAMES):
        raise ConfigError(f"ways is {ways}: expected 2 to {len(NAMES)}")
    found = _classes(path, root, ways, sourced=across)
    counts = {name: _to_show(own, across) + 1 for name, own in found.items()}
    sizes = sorted(counts.values(), reverse=True)
    least = min(ENOUGH, sizes[max(ways, -(-len(sizes) // 2)) - 1])
    if least < 2:
        raise ConfigError(
            f"{path} has fewer than {ways} classes with images of two sources: expected at least "
            f'two different values of "source" among the images of a class'
        )
    classes = {name: tuple(own) for name, own in found.items() if counts[name] >= least}
    sources = {image: told for own in found.values() for image, told in own.items()}
    each = min(min(counts[name] for name in classes) - 1, MOST_SHOTS // ways)
    question = QUESTIONS[0]

    def make(number: int) -> Item:
        rng = generator(seed, number)
        words = chosen(rng, NAMES, ways)
        picked = chosen(rng, tuple(classes), ways)
        own = [_some(rng, classes[c], len(classes[c])) for c in picked]
        asked = int(rng.integers(ways))
        query = own[asked][each]
        if across:
            own = [[i for i in of_name if sources[i] != sources[query]] for of_name in own]

        def shown(image: FileRef, which: int) -> Example:
            return Example(source(image), question, words[which])

        rounds = [rng.permutation(ways) for _ in range(each)]
        shots = [shown(own[w][turn], w) for turn, names in enumerate(rounds) for w in names]
        choices = tuple(sorted(words))
        return Item(
            f"test-{number}",
            shown(query, asked),
            choices=choices,
            shots=tuple(shots),
            class_name=picked[asked],
        )

    return Task(
        name=f"{'styles' if across else 'binding'}-{ways}-{Path(path).stem}",
        kind="label",
        items=Generated(n, make),
        chance=1 / ways,
        max_new_tokens=8,
        episodic=True,
    )


def odd_one_out(
    path: str | Path,
    *,
    images: int = 4,
    seed: int = 0,
    n: int = 500,
    root: str | Path | None = None,
) -> Task:
    """Which of several images is of another class; demonstrations are of other classes than both.

    Args:
        path: As for `binding`; a class needs images enough for all places but one. With fewer than
            four classes there are no demonstrations.
        images: How many are shown at once.
        seed: Seed of all items.
        n: Test items.
        root: As for `read_data`.

    Raises:
        ConfigError: If it cannot be read, or there are too few classes of enough images.
    """
    if not 3 <= images <= len(PLACES):
        raise ConfigError(f"images is {images}: expected 3 to {len(PLACES)}")
    found = _classes(path, root, 2, least=images - 1)
    classes = {name: tuple(own) for name, own in found.items()}

    def make(number: int) -> Item:
        rng = generator(seed, number)

        def row(usual: str, other: str) -> Example:
            own = _some(rng, classes[usual], images - 1)
            place = int(rng.integers(images))
            own.insert(place, _some(rng, classes[other], 1)[0])
            return Example(tuple(map(source, own)), ODD, PLACES[place])

        asked = chosen(rng, tuple(classes), 2)
        others = tuple(name for name in classes if name not in asked)
        query = row(*asked)
        shots = [row(*chosen(rng, others, 2)) for _ in range(ODD_SHOTS if len(others) > 1 else 0)]
        return Item(f"test-{number}", query, choices=PLACES[:images], shots=tuple(shots))

    return Task(
        name=f"odd-{Path(path).stem}",
        kind="label",
        items=Generated(n, make),
        chance=1 / images,
        max_new_tokens=8,
        episodic=True,
    )


def _some(rng: np.random.Generator, options: Sequence[FileRef], count: int) -> list[FileRef]:
    """As many different ones of a list, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def _to_show(images: Mapping[FileRef, str], across: bool) -> int:
    """How many images of a class there are to show, whichever image is asked about."""
    if not across:
        return len(images) - 1
    return len(images) - max(Counter(images.values()).values())


def _classes(
    path: str | Path,
    root: str | Path | None,
    ways: int,
    least: int = 2,
    *,
    sourced: bool = False,
) -> dict[str, dict[FileRef, str]]:
    """The images of each class that has at least so many, each with its source.

    Raises:
        ConfigError: If there are fewer than so many such classes, or an image has no source where
            each should have one.
    """
    found: dict[str, dict[FileRef, str]] = {}
    for record in read_data(path, root=root):
        image = record.images[0] if len(record.images) == 1 else None
        if record.turns and record.answer and isinstance(image, FileRef):
            told = str(record.extra.get("source") or "")
            if sourced and not told:
                raise ConfigError(
                    f'{record.origin or path} has no "source": expected one in each row, such as '
                    "the style of a drawing"
                )
            found.setdefault(record.answer, {})[image] = told
    classes = {name: own for name, own in sorted(found.items()) if len(own) >= least}
    if len(classes) < ways:
        raise ConfigError(
            f"{path} has {len(classes)} classes of {least} images or more: expected at least "
            f"{ways}, a folder for each class or a file with an image and its name in each row"
        )
    return classes


TASKS = {
    "binding-2": Known(
        "two made-up names for classes of labelled images", read=binding, rooted=True, seeded=True
    ),
    "binding-5": Known(
        "five made-up names", read=partial(binding, ways=5), rooted=True, seeded=True
    ),
    "styles-2": Known(
        "two made-up names, each shown from another source than is asked about",
        read=partial(binding, across=True),
        rooted=True,
        seeded=True,
    ),
    "styles-5": Known(
        "five made-up names, likewise",
        read=partial(binding, ways=5, across=True),
        rooted=True,
        seeded=True,
    ),
    "odd": Known(
        "which of four images is of another class", read=odd_one_out, rooted=True, seeded=True
    ),
}
