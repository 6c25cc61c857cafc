"""Tasks: a data set with its prompt, its metric and its chance level. Pure: no torch.

A task has test items and a support set that demonstrations are chosen from. An item of an episode
(new names, an operator to be guessed) brings its own demonstrations instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

from isthmus.errors import ConfigError
from isthmus.prompts.answers import AnswerKind
from isthmus.prompts.answers.choices import LETTERS
from isthmus.prompts.prompt import Example

Metric = Literal["accuracy", "vqa", "exact", "characters"]
"""What an answer counts for: right or wrong by its kind; VQA accuracy over several people's
answers; right or wrong letter by letter; the same, with the character error rate besides."""

KEPT = 256
"""Items that a generated task keeps in memory."""


@dataclass(frozen=True)
class Item:
    """One question of a task, with its right answer.

    Attributes:
        id: Its name, unique within the task: records refer to it.
        example: Images, question, right answer and, where there is one, the rationale.
        choices: The answers to choose from, if the question is closed.
        accepted: Other right answers; for the metric "vqa" the answers of all people asked.
        shots: Demonstrations of this item alone, the first k of which are shown; None where they
            come from the task's support set.
        group: What kind of question it is, where a task has several.
        class_name: The class of what it shows, where the answer is a made-up name.
    """

    id: str
    example: Example
    choices: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    shots: tuple[Example, ...] | None = None
    group: str = ""
    class_name: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer, the preferred one first."""
        own = self.example.answer
        return ((own,) if own is not None else ()) + self.accepted


@dataclass(frozen=True)
class Task:
    """A data set with its prompt, its metric and its chance level.

    Attributes:
        name: Its name, unique within an evaluation.
        kind: What an answer is, which decides how it is read and compared.
        items: The test items; any sequence, also one that makes them when asked.
        support: Labelled items that demonstrations are chosen from; none of them is a test item.
        instruction: Text before everything else.
        template: The template's name; None for the model's own.
        chance: Accuracy of guessing evenly among the possible answers; 0 for open answers.
        metric: What an answer counts for.
        max_new_tokens: Most tokens of an answer given at once.
        max_rationale_tokens: Most tokens of an answer with reasoning before it.
        episodic: Whether items bring their own demonstrations.
        version: Raised when a generated task changes; records of two versions do not mix.

    Raises:
        ConfigError: If it has no items, or the chance level is out of range.
    """

    name: str
    kind: AnswerKind
    items: Sequence[Item]
    support: Sequence[Item] = ()
    instruction: str = ""
    template: str | None = None
    chance: float = 0.0
    metric: Metric = "accuracy"
    max_new_tokens: int = 16
    max_rationale_tokens: int = 256
    episodic: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        if not len(self.items):
            raise ConfigError(f'the task "{self.name}" has no items: expected at least one')
        if not 0 <= self.chance <= 1:
            raise ConfigError(
                f'the task "{self.name}" has chance {self.chance}: expected a share from 0 to 1'
            )

    @property
    def most_shots(self) -> int:
        """How many demonstrations there are to choose from."""
        return len(self.items[0].shots or ()) if self.episodic else len(self.support)

    def check(self) -> None:
        """Looks for ids used twice and for test items without an answer or in the support set.

        Raises:
            ConfigError: If there is one; the message names it.
        """
        support = _ids(self.name, self.support)
        for item in self.items:
            if item.example.answer is None:
                raise ConfigError(f'{self.name}: the item "{item.id}" has no answer')
        both = sorted(support & _ids(self.name, self.items))
        if both:
            raise ConfigError(
                f'{self.name}: "{both[0]}" is a test item and in the support set, where a '
                "demonstration would give its answer away; give each an id of its own"
            )


@dataclass(frozen=True)
class Known:
    """A task that has a name, in the `TASKS` of its file in `evaluation.tasks`.

    Attributes:
        about: What it is, in a line.
        generate: Makes it from a seed, where it is generated.
        read: Makes it from a path, where it is read.
        rooted: Whether `read` takes a `root` too, which images in a file of records are found by.
        seeded: Whether `read` takes a `seed` too, which episodes are drawn from.
    """

    about: str
    generate: Callable[[int], Task] | None = None
    read: Callable[..., Task] | None = None
    rooted: bool = False
    seeded: bool = False


def _ids(task: str, items: Sequence[Item]) -> set[str]:
    """The ids of items, each of which must be there once."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ConfigError(f'{task}: the id "{item.id}" is used twice; ids must differ')
        seen.add(item.id)
    return seen


def letters(choices: Sequence[str]) -> tuple[str, ...]:
    """The letters of as many choices.

    Raises:
        ConfigError: If there are more than 26.

    Example:
        >>> letters(["red", "blue"])
        ('A', 'B')
    """
    if len(choices) > len(LETTERS):
        raise ConfigError(f"{len(choices)} choices: expected at most {len(LETTERS)}, A to Z")
    return tuple(LETTERS[: len(choices)])


class Generated(Sequence[Item]):
    """Items that are made when asked for, the last few of them kept.

    Args:
        count: How many there are.
        make: Number to item; the same number must always make the same item.

    Example:
        >>> made = Generated(3, lambda i: Item(str(i), Example((), "What?", str(i))))
        >>> [item.id for item in made[1:]]
        ['1', '2']
    """

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._count = count
        self._make = make
        self._kept: OrderedDict[int, Item] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        at = index + self._count if index < 0 else index
        if not 0 <= at < self._count:
            raise IndexError(f"item {index} of {self._count}")
        if at not in self._kept:
            self._kept[at] = self._make(at)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[at]


def limited(task: Task, limit: int | None) -> Task:
    """The task with its first so many items; None for all.

    Items of files are often sorted by class, so these are spread evenly over the whole.

    Raises:
        ConfigError: If the limit is below 1.
    """
    if limit is None or limit >= len(task.items):
        return task
    if limit < 1:
        raise ConfigError(f"limit is {limit}: expected at least 1")
    count = len(task.items)
    return replace(task, items=[task.items[i * count // limit] for i in range(limit)])
