"""Which demonstrations each question of an arm is shown with, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isthmus.demonstrations.order import ORDERS, arrange
from isthmus.demonstrations.retrieve import (
    Balanced,
    Diverse,
    Fixed,
    ImageThenText,
    RandomShots,
    Selector,
    rices,
    text_neighbours,
)
from isthmus.demonstrations.support import Support
from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.answering import shown
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.task import Item, Task
from isthmus.generation.engine import Engine
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import refuse_whole
from isthmus.prompts.prompt import Example


def _encoder(engine: Engine) -> VisionEncoder:
    """The vision encoder that tells which images are alike."""
    refuse_whole(engine.model, "choosing demonstrations by their images")
    assert isinstance(engine.model, VisionLanguageModel)
    return engine.model.vision


SELECTORS: dict[str, tuple[str, Callable[[Support, Engine, int], Selector]]] = {
    "fixed": ("the first of the support set", lambda s, e, seed: Fixed(s)),
    "random": (
        "drawn from the seed, the same for all questions",
        lambda s, e, seed: RandomShots(s, seed, per_query=False),
    ),
    "random-each": (
        "drawn from the seed for each question",
        lambda s, e, seed: RandomShots(s, seed),
    ),
    "balanced": (
        "drawn class by class, the same for all questions",
        lambda s, e, seed: Balanced(s, seed, per_query=False),
    ),
    "rices": ("with the most similar images", lambda s, e, seed: rices(s, _encoder(e))),
    "text": ("with the most similar questions", lambda s, e, seed: text_neighbours(s)),
    "image-then-text": (
        "neighbours by image, re-ranked by question",
        lambda s, e, seed: ImageThenText(s, rices(s, _encoder(e)).embed),
    ),
    "mmr": (
        "similar questions that are unlike each other",
        lambda s, e, seed: Diverse(text_neighbours(s), "mmr"),
    ),
    "dpp": (
        "similar questions, a determinantal point process",
        lambda s, e, seed: Diverse(text_neighbours(s), "dpp"),
    ),
}
"""Ways to choose demonstrations: what they are, and how they are made."""


def check_selection(select: str, order: str) -> None:
    """Refuses what is unknown before a model is loaded.

    Raises:
        ConfigError: If the selection or the order is unknown.
    """
    if select not in SELECTORS:
        raise ConfigError(f'unknown selection "{select}": {suggestion(select, SELECTORS)}')
    if order not in ORDERS:
        raise ConfigError(f'unknown order "{order}": {suggestion(order, ORDERS)}')


def to_choose_from(task: Task, arm: Arm) -> list[Item]:
    """The items of the support set that can be an arm's demonstrations.

    Raises:
        ConfigError: If there are too few.
    """
    usable = [i for i in task.support if arm.reasoning != "cot" or i.example.rationale]
    if len(usable) < arm.shots:
        raise ConfigError(
            f"{arm.id}: {len(usable)} demonstrations have a rationale; expected at least "
            f"{arm.shots}"
        )
    return usable


class Shots:
    """The demonstrations of an arm.

    Episodes bring their own, of which the first are taken as they stand.

    Args:
        engine: Its vision encoder compares images, where they are compared.
        task: The task.
        arm: The arm.
        select: A name in `SELECTORS`.
        order: A name in `demonstrations.order.ORDERS`.
        written: Demonstrations that the model wrote, for Auto-CoT; they are fixed.

    Raises:
        ConfigError: If there are too few demonstrations.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        arm: Arm,
        select: str,
        order: str,
        written: Sequence[Example] = (),
    ) -> None:
        check_selection(select, order)
        self.task, self.arm, self.order = task, arm, order
        self.written = written
        self._selector: Selector | None = None
        if arm.reasoning == "auto-cot":
            return
        if task.episodic or not arm.shots:
            return
        usable = to_choose_from(task, arm)
        support = Support([shown(i, task) for i in usable], [i.id for i in usable])
        self._selector = SELECTORS[select][1](support, engine, arm.seed)

    def of(self, item: Item) -> Sequence[Example]:
        """The demonstrations of a question, in the order in which they stand."""
        if self.written:
            return self.written
        if self.task.episodic:
            return (item.shots or ())[: self.arm.shots]
        if self._selector is None:
            return ()
        chosen = self._selector.select(shown(item, self.task), self.arm.shots, item.id)
        return arrange(chosen, self.order, seed=self.arm.seed)  # type: ignore[arg-type]
