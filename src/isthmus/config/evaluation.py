"""Which evaluations a model's card is made of, as a configuration file. Pure: no torch.

A file is TOML with a table for each evaluation, and one for each picture of their results:

    [[run]]                                 [[picture]]
    name = "drawings"                       name = "shots"
    tasks = ["binding-2:records/a.jsonl"]   runs = ["drawings"]
    shots = [0, 2, 8]                       kind = "shots"
    controls = ["shuffled", "blank"]

Each run is what `isthmus eval` with the same options does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from isthmus.config.base import Amount, Config, Count, NotNegative, Range, from_mapping
from isthmus.config.file import tables_of
from isthmus.errors import ConfigError, suggestion

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """One evaluation: tasks in arms."""

    name: str
    """The folder of its records; small letters, digits and hyphens."""
    about: str = ""
    """What it measures, in a sentence for the card."""
    tasks: tuple[str, ...]
    """Tasks as `--tasks` takes them; paths are relative to the data folder."""
    shots: tuple[NotNegative, ...] = (0, 4, 8)
    """Numbers of demonstrations, over all classes."""
    reasoning: tuple[str, ...] = ("none",)
    """Ways to reach an answer."""
    samples: Count = 1
    """Answers drawn for each question, of which the most frequent is taken."""
    temperature: Amount | None = None
    """Of the draws; None is 0.7 for several and greedy for one."""
    seeds: Count = 1
    """How many seeds of demonstrations and samples, from 0 on."""
    task_seed: NotNegative = 0
    """Seed of generated tasks and of episodes; another one makes other items."""
    select: str = "random"
    """How demonstrations are chosen."""
    order: str = "similar-last"
    """In which order they stand."""
    calibrate: str = "none"
    """How closed answers are calibrated."""
    norm: Literal["sum", "token", "byte"] = "sum"
    """What closed answers are scored by."""
    controls: tuple[str, ...] = ()
    """Controls that each arm is repeated with."""
    limit: Count | None = None
    """Most questions of each task, spread over all of it."""
    template: str | None = None
    """The template's name; None for the task's, or else the model's own."""
    trigger: str = "step-by-step"
    """What zero-shot chain of thought begins with: a published trigger's name, or a text."""
    groups: bool = False
    """Whether the card has a row for each kind of question, which a file tells by `source`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("tasks", "shots", "reasoning"):
            if not getattr(self, key):
                raise ConfigError(f'the run "{self.name}" has no {key}: expected at least one')


@dataclass(frozen=True, kw_only=True)
class PictureConfig(Config):
    """A picture of results, as SVG."""

    name: str
    """The file's name without its ending."""
    title: str
    """What stands above it."""
    kind: Literal["shots", "ways"]
    """Curves over the demonstrations, a panel for each task; or a bar for each way to answer."""
    runs: tuple[str, ...]
    """Names of the runs whose arms it shows."""
    labels: tuple[str, ...] = ()
    """What stands above each panel, in the order of the tasks; without, the tasks' names."""
    width: Annotated[int, Range(320, 1200)] = 640
    """In pixels. A narrow one has larger letters where it is shown small."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ConfigError(f'the picture "{self.name}" has no runs: expected at least one')


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(Config):
    """All of a configuration file: evaluations, and pictures of them."""

    run: tuple[EvaluationConfig, ...]
    """The evaluations, in order."""
    picture: tuple[PictureConfig, ...] = ()
    """The pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run:
            raise ConfigError("no [[run]]: expected at least one evaluation")
        for kind in ("run", "picture"):
            names = [own.name for own in getattr(self, kind)]
            for name in names:
                if not _NAME.fullmatch(name) or names.count(name) > 1:
                    raise ConfigError(
                        f'{kind}.name = "{name}": expected small letters, digits and hyphens, and '
                        "each name once"
                    )
        runs = [own.name for own in self.run]
        for picture in self.picture:
            for name in picture.runs:
                if name not in runs:
                    raise ConfigError(
                        f'the picture "{picture.name}" shows the run "{name}": '
                        f"{suggestion(name, runs)}"
                    )


def suite_from_mapping(values: Mapping[str, Any]) -> SuiteConfig:
    """A `SuiteConfig` from the tables of a configuration file.

    Raises:
        ConfigError: If anything in it is unknown, missing or does not fit its type.

    Example:
        >>> suite_from_mapping({"run": [{"name": "odd", "tasks": ["parity"]}]}).run[0].shots
        (0, 4, 8)
    """
    return from_mapping(SuiteConfig, values, "evaluation")


def read_suite(path: str | Path) -> SuiteConfig:
    """Reads a TOML file of evaluations.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not fit `SuiteConfig`.
    """
    return suite_from_mapping(tables_of(path))


def options_of(run: EvaluationConfig) -> dict[str, Any]:
    """What a run sets that is not the default, without its name: to be said beside its results.

    Example:
        >>> options_of(EvaluationConfig(name="a", tasks=("parity",), limit=5))
        {'tasks': ('parity',), 'limit': 5}
    """
    unsaid = ("name", "about", "groups")
    own = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in unsaid}
    return {f.name: own[f.name] for f in fields(run) if f.name in own and own[f.name] != f.default}
