"""Tasks by name: generated ones need nothing, the others a path, as in `gsm8k:FOLDER`.

A task of one's own is a function that makes a `Task`, from a seed or from a path. It is named as
"package.module:function", with a path as "package.module:function:PATH", or by an entry point in
the group `isthmus.tasks`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

from isthmus.config.registry import TASK_MAKERS
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.task import Known, Task


def _every() -> dict[str, Known]:
    """The tasks of all files in this folder."""
    found: dict[str, Known] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "TASKS", {})
    return found


TASKS: dict[str, Known] = _every()
"""Every task that can be named. A file in this folder adds its own, in its `TASKS`."""


def task_named(spec: str, *, seed: int = 0, root: str | Path | None = None) -> Task:
    """The task of a name, a name and a path, or the path of a JSONL file of questions.

    Args:
        spec: "counting", "gsm8k:data/gsm8k", "exam.jsonl", "package.module:function".
        seed: Seed of generated tasks, and of episodes that are drawn from images.
        root: What paths are relative to, those of images in a file of records too; None is the
            current folder, and for images the file's own.

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
        name, colon, path = "questions", ":", spec
    if name not in TASKS:
        folder = " (a folder of classes is classes:FOLDER)" if Path(spec).is_dir() else ""
        names = {*TASKS, *TASK_MAKERS.offered()}
        raise ConfigError(
            f'unknown task "{name}"{folder}: {suggestion(name, names)}, FILE.jsonl, '
            "package.module:function"
        )
    known = TASKS[name]
    if path and known.read is not None:
        drawn = {"seed": seed} if known.seeded else {}
        if known.rooted:
            return known.read(path, root=root, **drawn)
        return known.read(path if root is None else str(Path(root) / path), **drawn)
    if known.generate is None:
        raise ConfigError(f'the task "{name}" needs a path: expected {name}:PATH')
    if colon:
        raise ConfigError(f'the task "{name}" is generated and takes no path: got "{spec}"')
    return known.generate(seed)


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
