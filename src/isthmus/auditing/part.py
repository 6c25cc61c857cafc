"""A part of an audit: one question, one function, one result that is kept when it is done.

A part that cannot run says what is missing, and the others run all the same. A killed audit goes on
behind the last part that was done.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus.auditing.bench import Bench
from isthmus.errors import ConfigError, IsthmusError
from isthmus.files import write_json

PARTS = "parts"


@dataclass(frozen=True)
class Measured:
    """What a part found.

    Attributes:
        values: Plain values for JSON.
        columns: What it says of each image, by name: a column of `records.jsonl`.
    """

    values: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a section.

    Attributes:
        section: The section's name, such as "bias".
        name: Its own name in the section.
        run: Measures it.
        cost: Roughly how long it takes, beside other parts; for the time left.
    """

    section: str
    name: str
    run: Callable[[Bench], Measured]
    cost: float = 1.0

    @property
    def id(self) -> str:
        """Section and name: "bias/classes"."""
        return f"{self.section}/{self.name}"


@dataclass(frozen=True)
class Done:
    """A part that ran, or could not.

    Attributes:
        part: Its id.
        values: As in `Measured`; empty if it could not run.
        columns: As in `Measured`.
        missing: Why it could not run; empty if it ran.
    """

    part: str
    values: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    missing: str = ""


def measure(part: Part, bench: Bench) -> Done:
    """Runs a part; what is missing becomes its result.

    Raises:
        ConfigError: If the part gives a value that JSON has no word for.
    """
    try:
        found = part.run(bench)
    except IsthmusError as error:
        return Done(part.id, {}, {}, str(error))
    return Done(part.id, plain(found.values), plain(found.columns))


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses, tensors and arrays become dicts, lists and numbers.

    Raises:
        ConfigError: If it holds something else, or a number that is not finite.

    Example:
        >>> plain({"a": torch.tensor([1, 2]), "b": np.float32(0.5), 3: (True, None)})
        {'a': [1, 2], 'b': 0.5, '3': [True, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"an audit's result holds {value}: expected a finite number or None")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(f"an audit's result holds {type(value).__name__}: expected plain values")


class Kept:
    """Results of parts in a folder, so that an audit that was stopped goes on.

    Args:
        folder: The audit's folder; None keeps nothing.
        told: What decides the results: model, data, settings.

    Raises:
        ConfigError: If the folder holds another audit.
    """

    def __init__(self, folder: Path | None, told: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else folder / PARTS
        if self.folder is None:
            return
        about = self.folder / "audit.json"
        now = plain(told)
        before = _read(about)
        if before is not None and before != now:
            differs = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
            raise ConfigError(
                f"{folder} holds another audit, which differs in {', '.join(differs)}: expected "
                "the same one, to resume it; choose another --out, or remove the folder"
            )
        if before is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(about, now)

    def __contains__(self, part: Part) -> bool:
        return self.folder is not None and self._path(part).is_file()

    def read(self, part: Part) -> Done | None:
        """What a part found before; None if it has not run, or could not."""
        found = None if self.folder is None else _read(self._path(part))
        return None if found is None else Done(**found)

    def write(self, part: Part, done: Done) -> None:
        """Keeps a result; one that is missing something is tried again next time."""
        if self.folder is not None and not done.missing:
            write_json(self._path(part), dataclasses.asdict(done))

    def _path(self, part: Part) -> Path:
        assert self.folder is not None
        return self.folder / f"{part.section}-{part.name}.json"


def run_all(parts: Sequence[Part], bench: Bench, kept: Kept) -> Iterator[tuple[Part, Done]]:
    """Runs parts one after another; those that were done before are read."""
    for part in parts:
        done = kept.read(part)
        if done is None:
            done = measure(part, bench)
            kept.write(part, done)
        yield part, done


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None if there is none, or one that was cut off."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
