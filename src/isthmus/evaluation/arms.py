"""Arms: what is compared, each differing from the others in one thing. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from isthmus.errors import ConfigError, suggestion
from isthmus.evaluation.task import Task

Way = Literal["none", "cot", "zero-cot", "auto-cot", "least-to-most"]
"""How an answer is reached: at once; after demonstrations with rationales; after a trigger; after
demonstrations whose rationales the model wrote; over questions that it makes itself."""
WAYS: tuple[str, ...] = get_args(Way)

CONTROLS = {
    "blank": "the question's images are grey: what remains is guessed from the text",
    "blank-shots": "the demonstrations' images are grey",
    "shuffled": "the demonstrations' answers are shuffled among them",
    "filler": "dots as long as the rationale in its place: the compute of steps without words",
    "answer-first": "the answer before the rationale, which then cannot help it",
}
"""Controls: what is taken away, so that an arm's gain can be put down to something."""
NEEDS_RATIONALE = ("filler", "answer-first")


@dataclass(frozen=True)
class Arm:
    """One way to ask all questions of a task.

    Attributes:
        task: The task's name.
        shots: Demonstrations.
        reasoning: How an answer is reached.
        seed: Seed of the choice of demonstrations and of sampling.
        control: What is taken away; empty for nothing.
    """

    task: str
    shots: int
    reasoning: str = "none"
    seed: int = 0
    control: str = ""

    @property
    def id(self) -> str:
        """Its name in records and tables.

        Example:
            >>> Arm("counting", 4, "cot", control="blank").id
            'counting, 4 shots, cot, seed 0, blank'
        """
        parts = [
            self.task,
            f"{self.shots} shots",
            self.reasoning,
            f"seed {self.seed}",
            self.control,
        ]
        return ", ".join(p for p in parts if p)


def plan(
    tasks: Sequence[Task],
    shots: Sequence[int],
    reasoning: Sequence[str],
    seeds: Sequence[int],
    controls: Sequence[str],
) -> tuple[list[Arm], dict[str, str]]:
    """All arms, task by task, and why some of them make no sense.

    Args:
        tasks: The tasks.
        shots: Numbers of demonstrations.
        reasoning: Ways of reaching an answer.
        seeds: Seeds.
        controls: Controls that each arm is repeated with.

    Returns:
        The arms to run, and the id of each one left out with its reason.

    Raises:
        ConfigError: If a choice is unknown, or nothing is left to run.
    """
    for way in reasoning:
        if way not in WAYS:
            raise ConfigError(f'unknown way to reason "{way}": {suggestion(way, WAYS)}')
    for control in controls:
        if control not in CONTROLS:
            raise ConfigError(f'unknown control "{control}": {suggestion(control, CONTROLS)}')
    for number in shots:
        if number < 0:
            raise ConfigError(f"{number} shots: expected 0 or more")
    run: list[Arm] = []
    left_out: dict[str, str] = {}
    for task in tasks:
        for seed in seeds:
            for way in reasoning:
                for number in shots:
                    for control in ("", *controls):
                        arm = Arm(task.name, number, way, seed, control)
                        why = _why_not(task, arm)
                        if why:
                            left_out[arm.id] = why
                        else:
                            run.append(arm)
    if not run:
        first, why = next(iter(left_out.items()), ("no task", "name at least one"))
        raise ConfigError(f"nothing to run: {first}: {why}")
    return run, left_out


def _why_not(task: Task, arm: Arm) -> str:
    """Why an arm makes no sense; empty if it does."""
    item = task.items[0]
    demonstrations = item.shots if task.episodic else [i.example for i in task.support[:1]]
    if arm.shots > task.most_shots:
        return f"the task has {task.most_shots} demonstrations"
    if arm.reasoning in ("cot", "auto-cot") and arm.shots == 0:
        return "worked demonstrations need at least one shot"
    if arm.reasoning in ("zero-cot", "least-to-most") and arm.shots > 0:
        return f"{arm.reasoning} is asked without demonstrations"
    worked = any(d.rationale for d in demonstrations or ())
    if arm.reasoning == "cot" and not worked:
        return "its demonstrations have no rationales (auto-cot writes them)"
    if arm.reasoning == "auto-cot" and task.episodic:
        return "its demonstrations belong to each question"
    if arm.control in ("shuffled", "blank-shots") and arm.shots == 0:
        return "there are no demonstrations to change"
    pictured = item.example.images
    if arm.control == "blank" and not pictured:
        return "its questions have no images"
    if arm.control == "blank-shots" and not any(d.images for d in demonstrations or ()):
        return "its demonstrations have no images"
    if arm.control in NEEDS_RATIONALE and arm.reasoning != "cot":
        return "only worked demonstrations (cot) have rationales to change"
    return ""
