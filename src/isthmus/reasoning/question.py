"""A question, how it becomes prompts, and what its answer may be. Pure: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.prompts.answers import AnswerKind, extract
from isthmus.prompts.prompt import Example, Prompt, without_tags
from isthmus.prompts.template import Template

STOPS = ("\n", "Question:", "Q:")
"""What ends an answer: a base language model left to itself goes on with the pattern."""


@dataclass(frozen=True)
class Question:
    """A question on its way to an answer.

    Attributes:
        text: The question's own text, whose language is that of the steps.
        render: Makes a prompt of the beginning of an answer and of the sentence in which worked
            demonstrations state their answer; of two empty texts, the prompt for an answer at once.
        shots: The demonstrations that the prompt shows.
        kind: What the answer is.
        choices: The texts of a multiple choice, or the labels.
        stop: Strings that end an answer at once; steps have ends of their own.
        markers: Strings that nothing a model wrote may bring into a prompt.
    """

    text: str
    render: Callable[[str, str], Prompt]
    shots: tuple[Example, ...] = ()
    kind: AnswerKind = "text"
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = STOPS
    markers: tuple[str, ...] = ()
    _made: dict[tuple[str, str], Prompt] = field(default_factory=dict, compare=False, repr=False)

    def prompt(self, lead: str = "", *, conclusion: str = "") -> Prompt:
        """The prompt of an answer that begins with a lead; the same object for the same lead.

        Raises:
            PromptError: If a demonstration has no answer, or a text contains a tag.
        """
        key = (lead, conclusion)
        if key not in self._made:
            self._made[key] = self.render(lead, conclusion)
        return self._made[key]

    @property
    def images(self) -> tuple[Any, ...]:
        """The images of its prompts."""
        made = next(iter(self._made.values()), None) or self.prompt()
        return made.images

    def cleaned(self, text: str) -> str:
        """What the model wrote, fit for a prompt: nothing in it stands for an image or a turn."""
        return without_tags(text, self.markers).strip()

    def found(self, text: str, after: tuple[str, ...]) -> str | None:
        """The answer that a text states.

        Args:
            text: What the model wrote.
            after: Markers after which the answer stands; an empty one is the beginning.
        """
        choices = self.choices if self.kind in ("choice", "label") else ()
        return extract(text, self.kind, choices, after=after)


@dataclass(frozen=True)
class Asked:
    r"""What many questions have in common: their template and what their answers are.

    Attributes:
        template: Makes prompts.
        kind: What the answers are.
        choices: The texts of a multiple choice, or the labels.
        instruction: Stands before everything.

    Example:
        >>> from isthmus.prompts.templates import qa
        >>> Asked(qa, "number").question(Example((), "2 + 3?")).prompt("Well,").text
        'Q: 2 + 3?\nA: Well,'
    """

    template: Template
    kind: AnswerKind = "text"
    choices: tuple[str, ...] = ()
    instruction: str = ""

    def question(
        self,
        query: Example,
        shots: Sequence[Example] = (),
        *,
        stop: tuple[str, ...] = STOPS,
        markers: tuple[str, ...] = (),
    ) -> Question:
        """A question with its demonstrations.

        Args:
            query: The question and its images.
            shots: The demonstrations.
            stop: Strings that end an answer at once.
            markers: Strings that nothing a model wrote may bring into a prompt.
        """

        def render(lead: str, conclusion: str) -> Prompt:
            return self.template(
                shots,
                query,
                instruction=self.instruction,
                lead=lead,
                conclusion=conclusion,
            )

        return Question(
            query.question, render, tuple(shots), self.kind, self.choices, stop, markers
        )
