"""What the search for orders and calibration need of a template: a prompt around the question.

Any function from demonstrations and a query to a `Prompt` will do; options of a template are given
beforehand, with `functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.errors import PromptError
from isthmus.prompt import IMAGE_TAG, Example, Prompt

Render = Callable[[Sequence[Example], Example], Prompt]
"""A template: demonstrations and a query to a prompt."""
MARK = "QUESTION7MARK"


@dataclass(frozen=True)
class Frame:
    """A prompt with a gap where the query's question would stand.

    Attributes:
        before: The text before the question.
        after: The text after it.
        pictures: All pictures.
        shared: Characters that other prompts share, see `Prompt`.
    """

    before: str
    after: str
    pictures: tuple[Any, ...]
    shared: int

    def filled(self, question: str) -> Prompt:
        """The prompt with a question in the gap, even an empty one."""
        return Prompt(f"{self.before}{question}{self.after}", self.pictures, self.shared)

    def opened(self) -> Prompt:
        """The prompt up to the question, for the model to write one."""
        text = self.before.rstrip()
        pictures = self.pictures[: text.count(IMAGE_TAG)]
        return Prompt(text, pictures, min(self.shared, len(text)))


def frame(template: Render, shots: Sequence[Example], query: Example) -> Frame:
    """A template's prompt, with a gap in place of the query's question.

    Raises:
        PromptError: If the template does not show the question once, and as it is.

    Example:
        >>> from isthmus.templates import TEMPLATES
        >>> frame(TEMPLATES["plain"], [], Example((), "Why?")).filled("N/A").text
        'Question: N/A Answer:'
    """
    prompt = template(shots, replace(query, question=MARK))
    if prompt.text.count(MARK) != 1:
        raise PromptError(
            f"the template shows the query's question {prompt.text.count(MARK)} times: expected "
            "once and unchanged, so that another can be put in its place"
        )
    before, _, after = prompt.text.partition(MARK)
    return Frame(before, after, prompt.pictures, prompt.shared)
