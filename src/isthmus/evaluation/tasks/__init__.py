"""Tasks by name: generated ones need nothing, the others a path, as in `gsm8k:FOLDER`.

A task of one's own is a function that makes a `Task`, from a seed or from a path. It is named as
"package.module:function", with a path as "package.module:function:PATH", or by an entry point in
the group `isthmus.tasks`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isthmus.config.registry import TASK_MAKERS
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.task import Task
from isthmus.evaluation.tasks import episodes, grids, images, published, questions, text


@dataclass(frozen=True)
class Known:
    """A task that has a name.

    Attributes:
        make: Makes it: from a seed, or from a path.
        needs_path: Whether a path follows the name after a colon.
        about: What it is, in a line.
    """

    make: Callable[..., Task]
    needs_path: bool
    about: str


TASKS: dict[str, Known] = {
    "counting": Known(grids.counting, False, "how many shapes of a colour are in a grid"),
    "two-hop": Known(grids.two_hop, False, "two counts in a grid put together, with rationales"),
    "parity": Known(text.parity, False, "whether the sum of digits is odd or even (text)"),
    "arithmetic": Known(text.arithmetic, False, "four operators modulo 7, with steps (text)"),
    "fast-binding-2": Known(
        lambda seed=0: episodes.fast_binding(seed), False, "two made-up names for made-up things"
    ),
    "fast-binding-5": Known(
        lambda seed=0: episodes.fast_binding(seed, ways=5), False, "five made-up names"
    ),
    "operator-induction": Known(
        episodes.operator_induction, False, "a hidden operator between two pictured numbers"
    ),
    "ocr": Known(images.ocr, False, "images of made-up words; ocr:PATH for images of yours"),
    "easy-vqa": Known(published.easy_vqa, True, "easy-VQA, from its folder"),
    "gsm8k": Known(published.gsm8k, True, "GSM8K, from its test file (train beside it for shots)"),
    "svamp": Known(published.svamp, True, "SVAMP, from SVAMP.json"),
    "classes": Known(images.classification, True, "a folder of images for each class"),
    "naming": Known(images.naming, True, "images with accepted names, none of them offered"),
    "questions": Known(questions.questions, True, "a JSONL file of questions; also just its path"),
}
"""Every task that can be named."""


def task_named(spec: str, *, seed: int = 0) -> Task:
    """The task of a name, a name and a path, or the path of a JSONL file of questions.

    Args:
        spec: "counting", "gsm8k:data/gsm8k", "exam.jsonl", "package.module:function".
        seed: Seed of generated tasks.

    Raises:
        ConfigError: If there is no such task, or its files cannot be read.

    Example:
        >>> task_named("counting").kind
        'number'
    """
    name, colon, path = spec.partition(":")
    if name not in TASKS and (own := _own(name, path, seed)) is not None:
        return own
    if spec.endswith(".jsonl") and name not in TASKS:
        return questions.questions(spec)
    if name not in TASKS:
        folder = " (a folder of classes is classes:FOLDER)" if Path(spec).is_dir() else ""
        names = {*TASKS, *TASK_MAKERS.offered()}
        raise ConfigError(
            f'unknown task "{name}"{folder}: {suggestion(name, names)}, FILE.jsonl, '
            "package.module:function"
        )
    if name == "ocr" and path:
        return images.reading(path)
    known = TASKS[name]
    if known.needs_path:
        if not path:
            raise ConfigError(f'the task "{name}" needs a path: expected {name}:PATH')
        return known.make(path)
    if colon:
        raise ConfigError(f'the task "{name}" is generated and takes no path: got "{spec}"')
    return known.make(seed)


def _own(name: str, rest: str, seed: int) -> Task | None:
    """A task of another package; None where the name is none of a module or an entry point."""
    if name in TASK_MAKERS.offered():
        maker, path = name, rest
    elif rest and all(step.isidentifier() for step in name.split(".")) and _is_module(name):
        attribute, _, path = rest.partition(":")
        maker = f"{name}:{attribute}"
    else:
        return None
    task = TASK_MAKERS.find(maker)(path or seed)
    if not isinstance(task, Task):
        raise ConfigError(f'the task "{maker}" made {type(task).__name__}: expected a Task')
    return task


def _is_module(name: str) -> bool:
    """Whether a name is meant for a module: it has a dot, or there is one."""
    return "." in name or importlib.util.find_spec(name) is not None
