"""Tasks about images: the classes of a folder, names, text to be read. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.folders import images_in, is_left_out
from isthmus.data.records import Record, entries_of, frames
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.evaluation.tasks.drawing import draw_text, generator
from isthmus.media.file_ref import FileRef
from isthmus.media.image import ENDINGS
from isthmus.prompts.prompt import Example

SUPPORT = ("train", "training", "support")
TEST = ("test", "val", "validation")
"""What folders, and the `split` of records, call images to show and images to ask about."""
MOST_SUPPORT = 16
"""Images of each class that are set aside for demonstrations, and at most half of them."""
WHAT = "What is in the picture?"
READ = "What does the text say?"
LETTERS = "bdfghklmnprstvz"
VOWELS = "aeiou"


def _classes(root: Path) -> dict[str, list[Path]]:
    """Class names and the images of each, from a folder of folders."""
    if not root.is_dir():
        return {}
    return {
        folder.name.replace("_", " "): images
        for folder in sorted(p for p in root.iterdir() if p.is_dir() and not is_left_out(p.name))
        if (images := sorted(images_in(folder)))
    }


def classification(path: str | Path, question: str = "What is this?") -> Task:
    """Which class an image is of; the name of each folder is the class of the images in it.

    With folders `train` (or `support`) and `test` (or `val`) above the classes, demonstrations
    come from the one and questions from the other. Otherwise the last images of each class, at
    most 16 and at most half, are set aside for demonstrations.

    Args:
        path: The folder.
        question: What is asked of each image.

    Raises:
        ConfigError: If there are not at least two classes with images.
    """
    root = Path(path)
    test = next((root / n for n in TEST if (root / n).is_dir()), None)
    support = next((root / n for n in SUPPORT if (root / n).is_dir()), None)
    if test is not None:
        asked = _classes(test)
        shown = _classes(support) if support is not None else {}
    else:
        asked, shown = {}, {}
        for name, images in _classes(root).items():
            aside = min(MOST_SUPPORT, len(images) // 2)
            asked[name] = images[: len(images) - aside]
            shown[name] = images[len(images) - aside :]
    names = tuple(sorted({*asked, *shown}))
    if len(names) < 2:
        raise ConfigError(
            f"{root} has {len(names)} classes with images: expected a folder for each class, "
            f"and at least two (images end in {', '.join(ENDINGS)})"
        )

    def items(found: dict[str, list[Path]]) -> list[Item]:
        return [
            Item(str(p.relative_to(root)), Example(p, question, name), choices=names)
            for name, images in found.items()
            for p in images
        ]

    return Task(
        name=root.resolve().name,
        kind="label",
        items=items(asked),
        support=items(shown),
        chance=1 / len(names),
        max_new_tokens=16,
    )


def source(image: FileRef) -> Any:
    """What `open_image` takes: the path of a file, or the bytes of a part of one."""
    whole = image.data is None and image.start == 0 and image.size is None
    return image.path if whole else image.read()


def _from_records(
    path: str | Path, root: str | Path | None, question: str
) -> tuple[Sequence[Item], Sequence[Item]]:
    """Test items of labelled images, and those for demonstrations."""
    records = read_data(path, root=root)
    asked, aside = _splits(records, path)

    def make(number: int) -> Item:
        record: Record = records[number]
        if not record.answer or not record.images:
            raise ConfigError(f"{record.origin or path}: expected an image and its text or name")
        shown = [source(p) for m in record.images for p in frames(m)]
        others = tuple(n for n in record.names if n != record.answer)
        example = Example(shown, record.question or question, record.answer)
        return Item(str(number), example, accepted=others)

    return (
        Generated(len(asked), lambda i: make(asked[i])),
        Generated(len(aside), lambda i: make(aside[i])),
    )


def _splits(records: Sequence[Record], path: str | Path) -> tuple[list[int], list[int]]:
    """The numbers of records to ask about, and of those for demonstrations.

    Where a record says its `split`, one that says none is asked about. Where none does, one in ten
    is set aside.
    """
    told = [e.extra.get("split") if isinstance(e, Record) else None for e in entries_of(records)]
    if all(split is None for split in told):
        aside = range(0, len(told), 10) if len(told) >= 10 else range(0)
        return [i for i in range(len(told)) if i not in aside], list(aside)
    for i, split in enumerate(told):
        if split is not None and split not in (*TEST, *SUPPORT):
            raise ConfigError(
                f'{records[i].origin or path}: "split" is {split!r}: '
                f"{suggestion(str(split), (*TEST, *SUPPORT))}"
            )
    asked = [i for i, split in enumerate(told) if split not in SUPPORT]
    if not asked:
        raise ConfigError(f'{path} has no images with "split": "test": expected at least one')
    return asked, [i for i, split in enumerate(told) if split in SUPPORT]


def naming(path: str | Path, root: str | Path | None = None) -> Task:
    """Open-ended naming: any of an image's accepted names is right, and none is offered.

    Args:
        path: Anything that `read_data` takes; `names` holds the accepted names of a row. What says
            `"split": "support"` is for demonstrations; every tenth image where none has a split.
        root: As for `read_data`.

    Raises:
        ConfigError: If it cannot be read, or a row has no image, no name or an unknown split.
    """
    items, support = _from_records(path, root, WHAT)
    name = f"naming-{Path(path).stem}"
    return Task(name=name, kind="text", items=items, support=support, max_new_tokens=12)


def reading(path: str | Path, root: str | Path | None = None) -> Task:
    """Optical character recognition of one's own images: exact match and character error rate.

    Args:
        path: Anything that `read_data` takes: images with the text that stands in them. What says
            `"split": "support"` is for demonstrations; every tenth image where none has a split.
        root: As for `read_data`.

    Raises:
        ConfigError: If it cannot be read, or a row has no image, no text or an unknown split.
    """
    items, support = _from_records(path, root, READ)
    return Task(
        name=f"ocr-{Path(path).stem}",
        kind="text",
        items=items,
        support=support,
        metric="characters",
        max_new_tokens=64,
    )


def made_up_word(rng: np.random.Generator) -> str:
    """A word that no language model can guess from its beginning: 2 to 4 syllables or digits."""
    if rng.random() < 0.25:
        return "".join(str(d) for d in rng.integers(0, 10, size=int(rng.integers(3, 7))))
    syllables = int(rng.integers(2, 5))
    word = "".join(
        LETTERS[int(rng.integers(len(LETTERS)))] + VOWELS[int(rng.integers(len(VOWELS)))]
        for _ in range(syllables)
    )
    return (str.lower, str.upper, str.capitalize)[int(rng.integers(3))](word)


def ocr(
    seed: int = 0, n: int = 500, support: int = 64, *, size: tuple[int, int] = (160, 64)
) -> Task:
    """Images of made-up words and numbers, to be read letter by letter.

    Args:
        seed: Seed of all items.
        n: Test items.
        support: Items that demonstrations are chosen from.
        size: Width and height in pixels.

    Example:
        >>> ocr().items[0].example.question
        'What does the text say?'
    """

    def items(stream: int, count: int) -> Generated:
        def make(number: int) -> Item:
            rng = generator(seed, stream, number)
            word = made_up_word(rng)
            image = draw_text(word, size, int(rng.integers(size[1] // 3, size[1] // 2 + 1)))
            return Item(f"{('test', 'support')[stream]}-{number}", Example(image, READ, word))

        return Generated(count, make)

    return Task(
        name="ocr",
        kind="text",
        items=items(0, n),
        support=items(1, support),
        metric="characters",
        max_new_tokens=16,
    )


TASKS = {
    "ocr": Known(
        "images of made-up words; ocr:PATH for images of yours",
        generate=ocr,
        read=reading,
        rooted=True,
    ),
    "classes": Known("a folder of images for each class", read=classification),
    "naming": Known("images with accepted names, none of them offered", read=naming, rooted=True),
}
