"""Which demonstrations each question of an arm is shown with."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation._pending import RandomShots
from isthmus.evaluation.answering import shown
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.task import Item, Task
from isthmus.generation.engine import Engine
from isthmus.prompt import Example

SELECTORS = ("fixed", "random")


class Shots:
    """The demonstrations of an arm.

    Args:
        engine: Its model compares pictures, where they are compared.
        task: The task.
        arm: The arm.
        select: How they are chosen.
        order: In which order they stand.

    Raises:
        ConfigError: If a choice is unknown.
    """

    def __init__(self, engine: Engine, task: Task, arm: Arm, select: str, order: str) -> None:
        if select not in SELECTORS:
            raise ConfigError(f'unknown selection "{select}": {suggestion(select, SELECTORS)}')
        self.task, self.arm = task, arm
        support = [i for i in task.support if arm.reason != "cot" or i.example.rationale]
        self._selector = None
        if not task.episodic and arm.shots:
            if len(support) < arm.shots:
                raise ConfigError(
                    f"{arm.id}: {len(support)} demonstrations have a rationale, fewer than shots"
                )
            self._selector = RandomShots([shown(i, task) for i in support], arm.seed)

    def of(self, item: Item) -> Sequence[Example]:
        """The demonstrations of a question."""
        if self.task.episodic:
            return (item.shots or ())[: self.arm.shots]
        if self._selector is None:
            return ()
        return self._selector.select(shown(item, self.task), self.arm.shots, item.id)
